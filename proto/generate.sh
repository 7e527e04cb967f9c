#!/bin/sh
# Generates csi_driver/rpc/pb/ from the .proto files here. Usage: proto/generate.sh [DIRECTORY]
#
# DIRECTORY is where csi_driver/rpc/pb/ is written below; without it, this repository. Needs the extra "dev" in the
# Python of $PYTHON, of the repository's .venv, or of the path.
set -eu

proto=$(cd "$(dirname "$0")" && pwd)
repository=$(dirname "$proto")
out=${1:-$repository}
python=${PYTHON:-$repository/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
# protoc looks for the plug-ins of mypy-protobuf on the path.
PATH=$(dirname "$python"):$PATH
export PATH

mkdir -p "$out/csi_driver/rpc/pb"
# "package=directory" gives the files the name of the package that they end in, and with it the imports between the
# generated modules; no import has to be patched afterwards.
"$python" -m grpc_tools.protoc \
    --proto_path="csi_driver/rpc/pb=$proto" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet,generate_concrete_servicer_stubs,sync_only:$out" \
    csi_driver/rpc/pb/csi.proto csi_driver/rpc/pb/hayloft.proto csi_driver/rpc/pb/health.proto \
    csi_driver/rpc/pb/plugin_registration.proto
