#!/usr/bin/env bash
# datasets 5.2.0: train_test_split(keep_in_memory=True) of a dataset that lies on disk always raises "Please use either
# `keep_in_memory` or `indices_cache_file_name` but not both", although no name was given: it fills in a name of its own
# beside the data, and passes both on to select(). shuffle(keep_in_memory=True) does not pass its own name on, and works.
# On a read-only directory the call without keep_in_memory fails as well (it writes that file), so the two names,
# train_indices_cache_file_name and test_indices_cache_file_name, have to be given.
#
# Seen with Python 3.11 on Linux:
#   in memory:                   ok
#   on disk, shuffle:            ok
#   on disk, train_test_split:   ValueError: Please use either `keep_in_memory` or `indices_cache_file_name` but not both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
HF_HOME=$work/hf HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work/data" <<'PYTHON'
import sys

import datasets

datasets.disable_progress_bars()
in_memory = datasets.Dataset.from_dict({"x": list(range(100))})
in_memory.save_to_disk(sys.argv[1])
on_disk = datasets.load_from_disk(sys.argv[1])


def outcome(call):
    try:
        call(seed=1, keep_in_memory=True)
        return "ok"
    except ValueError as error:
        return f"ValueError: {error}"


seen = [outcome(in_memory.train_test_split), outcome(on_disk.shuffle), outcome(on_disk.train_test_split)]
for name, one in zip(("in memory", "on disk, shuffle", "on disk, train_test_split"), seen):
    print(f"{name}: {one}")
if seen[:2] != ["ok", "ok"] or "but not both" not in seen[2]:
    raise SystemExit("changed")
PYTHON
