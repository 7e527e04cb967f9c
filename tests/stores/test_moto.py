"""moto, which keeps everything in memory and checks nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.stores.conformance import StoreConformance
from tests.stores.range_listing import RangeListing
from tests.stores.s3_server import S3Server
from tests.stores.store_server import HOST, StoreCannot, python_package_version


class Moto(S3Server):
    name = "moto"
    title = "moto"
    comes_with_set_up = True
    cannot = {
        "test_restarted_in_mid_read": "keeps its objects in memory",
        "test_wrong_secret": "checks no signature",
        "test_wrong_identity": "checks no key id",
        "test_no_credentials": "everybody may read",
    }
    cannot_hold = {"new\nline": "does not route it"}

    @classmethod
    def version(cls) -> str:
        return python_package_version("moto")

    def command(self) -> list[str]:
        return [str(Path(sys.executable).with_name("moto_server")), "-H", HOST, "-p", str(self.port)]

    def must_outlive_restarts(self) -> None:
        raise StoreCannot("keeps its objects in memory")


class TestMoto(RangeListing, StoreConformance):
    server_class = Moto
