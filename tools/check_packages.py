"""Loads all that the driver may load of the environment it is run in: ``/opt/hayloft/bin/python -I check_packages.py``.

For the image, whose packages are pruned (``tools/prune_packages.py``): what was taken out is missed here, and not by a
daemon at night. Nothing is mounted: ``tests/e2e`` does that, in the same environment. Exits with 1 and says what is
missing. Needs the driver alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import io
import os
import pkgutil
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

SERVICES = ("s3", "sts", "sso", "sso-oidc", "signin")
"""The services whose clients botocore makes: S3, and for credentials of roles, profiles and logins."""


def shared_objects() -> None:
    """Loads each shared object with every symbol resolved now, instead of when it is first called."""
    # Modules expect the libraries beside them to be loaded by the package.
    importlib.import_module("pyarrow.lib")
    for path in sorted(Path(sysconfig.get_path("purelib")).rglob("*")):
        if re.search(r"\.so(\.\d+)*$", path.name) and path.is_file():
            ctypes.CDLL(os.fspath(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)


def modules_of_the_driver() -> None:
    driver = importlib.import_module("csi_driver")
    for module in pkgutil.walk_packages(driver.__path__, "csi_driver."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def the_command() -> None:
    arguments = [sys.executable, "-I", "-m", "csi_driver.cli", "--help"]
    # Under emulation, on a busy machine, it takes minutes.
    subprocess.run(arguments, check=True, capture_output=True, timeout=1200)  # noqa: S603


def clients_of_aws() -> None:
    session = importlib.import_module("botocore.session").Session()
    for name in SERVICES:
        session.create_client(name, "us-east-1")
    asyncio.run(client_of_s3fs())


async def client_of_s3fs() -> None:
    session = importlib.import_module("aiobotocore.session").AioSession()
    async with session.create_client("s3", region_name="us-east-1"):
        pass


def clients_of_other_stores() -> None:
    """What is imported where a volume needs it, or is left to a library that imports late."""
    for name in (
        *("azure.identity", "obstore.store", "s3fs", "awscrt.checksums"),
        *("google.oauth2.service_account", "google.auth.aws", "google.auth.identity_pool"),
        *("google.auth.compute_engine.credentials", "google.auth.external_account", "google.auth.transport.requests"),
        *(f"fsspec.implementations.{name}" for name in ("ftp", "http", "local", "memory", "webhdfs")),
    ):
        importlib.import_module(name)
    # hdfs://, for images that add Java and Hadoop's client.
    importlib.import_module("fsspec.implementations.arrow")
    _ = importlib.import_module("pyarrow.fs").HadoopFileSystem


def traces() -> None:
    """Makes and drops a span; what loads the SDK's context is an entry point."""
    trace = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    exporter = importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter").OTLPSpanExporter()
    provider = trace.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    provider.get_tracer("check").start_span("check")
    provider.shutdown()


def files_of_inventories() -> None:
    """Imported where a volume has an inventory."""
    arrow, buffer = importlib.import_module("pyarrow"), io.BytesIO()
    table = arrow.table({"key": ["a"], "size": [1]})
    importlib.import_module("pyarrow.parquet").write_table(table, buffer)
    importlib.import_module("pyarrow.parquet").ParquetFile(buffer)
    importlib.import_module("pyarrow.orc").write_table(table, io.BytesIO())
    importlib.import_module("pyarrow.csv").read_csv(io.BytesIO(b"key,size\na,1\n"))


def tables_and_tracebacks() -> None:
    console = importlib.import_module("rich.console").Console(file=io.StringIO())
    for text, language in (("x = 1", "python"), ("x", "text")):
        console.print(importlib.import_module("rich.syntax").Syntax(text, language))


CHECKS: tuple[Callable[[], None], ...] = (
    shared_objects,
    modules_of_the_driver,
    the_command,
    clients_of_aws,
    clients_of_other_stores,
    traces,
    files_of_inventories,
    tables_and_tracebacks,
)


def main() -> int:
    for check in CHECKS:
        try:
            check()
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"{check.__name__}: {' '.join(error.cmd)}: {error.stderr.decode()}\n")
            return 1
        except Exception as error:  # noqa: BLE001 - a library fails as it likes where a part of it is missing
            sys.stderr.write(f"{check.__name__}: {type(error).__name__}: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
