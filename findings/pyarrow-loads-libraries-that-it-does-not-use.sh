#!/usr/bin/env bash
# pyarrow 26.0.1 (wheel for Linux x86-64): `import pyarrow` maps the libraries of Parquet, datasets, Acero and Substrait,
# because lib.so names them as NEEDED, although it takes not one symbol from them. An image of a program that uses Arrow
# alone cannot leave them out by deleting files: the import fails until the entries are removed (patchelf
# --remove-needed). And the wheel holds libarrow_python.so three times under three names, as copies and not as links, of
# which the loader uses one.
#
# Seen with Python 3.11:
#   libarrow_acero.so, libarrow_dataset.so, libarrow_substrait.so, libparquet.so  NEEDED by lib.so, symbols used: 0
#   libarrow_python.so, .so.2600, .so.2600.1.0                                    equal content, 3 inodes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: pyarrow==26.0.1 pyelftools==0.32
"$work/venv/bin/python" - <<'PYTHON'
import hashlib
from importlib.util import find_spec
from pathlib import Path

from elftools.elf.elffile import ELFFile

folder = Path(find_spec("pyarrow").submodule_search_locations[0])


def read(path):
    """NEEDED, and the dynamic symbols that a library takes from others and gives to them."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        needed = {tag.needed for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED")}
        taken, given = set(), set()
        for symbol in elf.get_section_by_name(".dynsym").iter_symbols():
            # Weak symbols (templates, inline functions) are in every library that uses them.
            (taken if symbol["st_shndx"] == "SHN_UNDEF" else given).add(symbol.name)
    return needed, taken, given


(library,) = folder.glob("lib.*.so")
needed, taken, own = read(library)
known = set(own)
for name in sorted(needed):
    if (folder / name).exists() and ("libarrow.so" in name or "libarrow_python" in name):
        known |= read(folder / name)[2]
unused = {}
for name in sorted(needed):
    if name.startswith(("libarrow_acero", "libarrow_dataset", "libarrow_substrait", "libparquet")):
        unused[name] = len((taken & read(folder / name)[2]) - known)
        print(f"{name}: NEEDED by {library.name}, symbols used: {unused[name]}")
copies = sorted(folder.glob("libarrow_python.so*"))
contents = {hashlib.sha256(path.read_bytes()).hexdigest() for path in copies}
inodes = {path.stat().st_ino for path in copies if not path.is_symlink()}
print(f"{', '.join(path.name for path in copies)}: {len(contents)} content, {len(inodes)} inodes")
if len(unused) != 4 or any(unused.values()) or (len(copies), len(contents), len(inodes)) != (3, 1, 3):
    raise SystemExit(f"changed: {unused}, {len(copies)} copies")
PYTHON
