#!/usr/bin/env bash
# runai-model-streamer 0.17.1 opens local files with O_DIRECT unless it is told otherwise, and so reads all bytes from the
# disk although every page of the file is in the page cache: a file that was read in ahead, to load a model from memory,
# gains nothing. RUNAI_STREAMER_FS_STRATEGY (io_uring_direct, io_uring_buffered, libaio_direct, sync_buffered) decides;
# with either of the buffered ones the disk is not read.
#
# Seen with Python 3.11 and torch 2.13.0, on ext4, Linux 6.18; bytes read from the disk for a file of 64 MiB in memory:
#   default:           67110400
#   sync_buffered:     0
#   io_uring_buffered: 0
# It needs a file system that takes O_DIRECT below /var/tmp, and 7 GB for torch.
set -euo pipefail
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir \
    runai-model-streamer==0.17.1 torch==2.13.0 numpy==2.4.4
cat > "$work/load.py" <<'PYTHON'
import json
import os
import sys

from runai_model_streamer import SafetensorsStreamer

path, count_bytes = sys.argv[1], 64 << 20
if not os.path.exists(path):
    header = json.dumps({"a": {"dtype": "U8", "shape": [count_bytes], "data_offsets": [0, count_bytes]}}).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + os.urandom(count_bytes))
        file.flush()
        os.fsync(file.fileno())
with open(path, "rb") as file:  # every page is in memory now
    while file.read(1 << 20):
        pass


def bytes_from_disk():
    with open("/proc/self/io") as file:
        return int(dict(line.split(": ") for line in file)["read_bytes"])


before = bytes_from_disk()
with SafetensorsStreamer() as streamer:
    streamer.stream_file(path)
    read = sum(tensor.numel() for _, tensor in streamer.get_tensors())
assert read == count_bytes, read
print(bytes_from_disk() - before)
PYTHON
by_default=$("$work/venv/bin/python" "$work/load.py" "$work/model.safetensors")
echo "default: $by_default"
[ "$by_default" -ge 67108864 ] || { echo changed; exit 1; }
for strategy in sync_buffered io_uring_buffered; do
    buffered=$(RUNAI_STREAMER_FS_STRATEGY=$strategy "$work/venv/bin/python" "$work/load.py" "$work/model.safetensors")
    echo "$strategy: $buffered"
    [ "$buffered" -lt 1048576 ] || { echo changed; exit 1; }
done
