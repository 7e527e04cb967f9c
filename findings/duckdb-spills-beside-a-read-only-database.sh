#!/usr/bin/env bash
# duckdb 2.0.1: a database that is opened with read_only=True spills what exceeds the memory into a directory beside its
# file, NAME.tmp, as one that is open for writing does. So on a read-only directory every query works until one is large,
# and then fails with an error of the file system. temp_directory names another place. Needs root, for a read-only mount.
#
# Seen with Python 3.11 on Linux:
#   temp_directory of a read-only database: t.duckdb.tmp beside it
#   a small query: 1
#   a large query: IOException: IO Error: Failed to create directory "…/t.duckdb.tmp": Read-only file system
#   a large query with temp_directory: 1899970464227
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1
mkdir "$work/data"
cat >"$work/seen.py" <<'PYTHON'
import os
import sys

import duckdb

work = sys.argv[1]
path = f"{work}/data/t.duckdb"
LARGE = "select sum(x) from (select x from range(2000000) r(x) order by hash(x) limit 1900000)"
small = {"memory_limit": "16MB", "threads": "1"}


def ask(query, **config):
    with duckdb.connect(path, read_only=True, config={**small, **config}) as database:
        try:
            return database.execute(query).fetchone()[0]
        except duckdb.Error as error:
            return f"{type(error).__name__}: {error}"


place = ask("select current_setting('temp_directory')")
print("temp_directory of a read-only database:", os.path.relpath(place, f"{work}/data"), "beside it")
print("a small query:", ask("select 1"))
large = ask(LARGE)
print("a large query:", large)
elsewhere = ask(LARGE, temp_directory=f"{work}/spilled")
print("a large query with temp_directory:", elsewhere)
if place != f"{path}.tmp" or "Read-only file system" not in str(large) or isinstance(elsewhere, str):
    raise SystemExit("changed")
PYTHON
"$work/venv/bin/python" -c "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('create table t as select 1 x')" \
    "$work/data/t.duckdb"
unshare --mount bash -euc '
    mount --bind "$0/data" "$0/data"
    mount -o remount,bind,ro "$0/data"
    "$0/venv/bin/python" "$0/seen.py" "$0"
' "$work"
