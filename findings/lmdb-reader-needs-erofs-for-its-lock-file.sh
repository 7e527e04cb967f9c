#!/usr/bin/env bash
# lmdb 3.0.0 (LMDB 0.9.36): a reader (readonly=True) opens lock.mdb for writing. It does without a lock file if that gives
# EROFS, and gives up on EACCES. So on a read-only bind mount of a writable disk, where Linux compares the mode of a file
# before it looks at the mount, root reads an environment and another user gets "Permission denied"; on a file system that
# is read-only itself both read it. And an environment without lock.mdb is read by everybody, because creating a file
# gives EROFS on both. lock=False avoids it. Needs root, for the mount.
#
# Seen with Python 3.11 on Linux 6.18:
#   lock.mdb 0444, root:              b'value'
#   lock.mdb 0444, no CAP_DAC_OVERRIDE: ReadonlyError: Permission denied
#   no lock.mdb, no CAP_DAC_OVERRIDE: b'value'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check lmdb==3.0.0
mkdir "$work/data" "$work/mount"
"$work/venv/bin/python" - "$work/data" <<'PYTHON'
import os
import sys

import lmdb

for name in ("with", "without"):
    with lmdb.open(f"{sys.argv[1]}/{name}") as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"value")
os.unlink(f"{sys.argv[1]}/without/lock.mdb")
for name in ("with/data.mdb", "with/lock.mdb", "without/data.mdb"):
    os.chmod(f"{sys.argv[1]}/{name}", 0o444)
PYTHON
cat >"$work/read.py" <<'PYTHON'
import sys

import lmdb

try:
    with lmdb.open(sys.argv[1], readonly=True) as environment, environment.begin() as transaction:
        print(transaction.get(b"key"))
except lmdb.Error as error:
    print(f"{type(error).__name__}: {str(error).rpartition(': ')[2]}")
PYTHON
# A mount namespace of its own: nothing has to be unmounted. Root without CAP_DAC_OVERRIDE is an ordinary owner.
unshare --mount bash -euc '
    mount --bind "$0/data" "$0/mount"
    mount -o remount,bind,ro "$0/mount"
    user="setpriv --bounding-set=-dac_override --inh-caps=-dac_override"
    echo "lock.mdb 0444, root: $("$0/venv/bin/python" "$0/read.py" "$0/mount/with")"
    echo "lock.mdb 0444, no CAP_DAC_OVERRIDE: $($user "$0/venv/bin/python" "$0/read.py" "$0/mount/with")"
    echo "no lock.mdb, no CAP_DAC_OVERRIDE: $($user "$0/venv/bin/python" "$0/read.py" "$0/mount/without")"
' "$work" | tee "$work/seen"
diff "$work/seen" - <<'EXPECTED' || { echo changed; exit 1; }
lock.mdb 0444, root: b'value'
lock.mdb 0444, no CAP_DAC_OVERRIDE: ReadonlyError: Permission denied
no lock.mdb, no CAP_DAC_OVERRIDE: b'value'
EXPECTED
