#!/usr/bin/env bash
# pyarrow 26.0.1 imports numpy with itself, and pandas as soon as an array is made of a plain Python list, where these
# packages are installed: a program that uses Arrow for its own columns, and never either of them, loads both.
#
# Keeping pandas out by None in sys.modules, for which Python's `import` raises ModuleNotFoundError, does not work:
# pyarrow's compiled code takes None for the module, and the first array of a list raises AttributeError instead of doing
# without pandas. A finder in sys.meta_path that raises works.
#
# Seen with Python 3.11, numpy 2.4.6, pandas 3.1.1:
#   after import pyarrow:        numpy
#   after pyarrow.array([1]):    numpy pandas
#   pandas is None:              AttributeError: 'NoneType' object has no attribute '__version__'
#   a finder raises for pandas:  numpy
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary=:all: \
    pyarrow==26.0.1 numpy==2.4.6 pandas==3.1.1
cat > "$work/arrow.py" <<'PYTHON'
import sys
from importlib.abc import MetaPathFinder


def loaded():
    return " ".join(sorted({"numpy", "pandas"} & {name for name, module in sys.modules.items() if module}))


class Without(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


if sys.argv[1] == "none":
    sys.modules["pandas"] = None
if sys.argv[1] == "finder":
    sys.meta_path.insert(0, Without())
import pyarrow

if sys.argv[1] == "import":
    print(loaded())
else:
    try:
        pyarrow.array([1])
        print(loaded())
    except AttributeError as error:
        print(f"AttributeError: {error}")
PYTHON
expect() {
    seen=$("$work/venv/bin/python" "$work/arrow.py" "$1")
    echo "$1: $seen"
    [ "$seen" = "$2" ] || { echo changed; exit 1; }
}
expect import "numpy"
expect array "numpy pandas"
expect none "AttributeError: 'NoneType' object has no attribute '__version__'"
expect finder "numpy"
