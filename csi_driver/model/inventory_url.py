"""Where the list of a dataset's objects lies: an inventory in a bucket, or one file."""

from __future__ import annotations

from dataclasses import dataclass

from csi_driver.model.dataset import DatasetUrl, without_query
from csi_driver.model.errors import InvalidParameter

MANIFEST_NAME = "manifest.json"

LIST_ENDINGS = {".parquet": "Parquet", ".orc": "ORC", ".csv": "CSV", ".csv.gz": "CSV"}
"""Of a list of one file, and its format."""

ALLOWED = (
    "the URL of a manifest.json of S3 Inventory, of the folder above its dated folders (with a slash at its end), or "
    "of a list in one file that ends in .parquet, .orc, .csv or .csv.gz"
)


@dataclass(frozen=True, slots=True)
class InventoryUrl:
    """``key`` is the complete key in the bucket; it ends with a slash where the newest inventory below it is meant."""

    scheme: str
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> InventoryUrl:
        """Raises InvalidParameter."""
        if without_query(text) != text:  # where people write signatures; no name of such a file needs it
            raise InvalidParameter("inventory", without_query(text), f"{ALLOWED}; without a query")
        parsed = DatasetUrl.parse(text)
        key = parsed.prefix if text.strip().endswith("/") else parsed.prefix.removesuffix("/")
        found = cls(parsed.scheme, parsed.bucket, key)
        known = key.endswith(("/", *LIST_ENDINGS)) or found.name == MANIFEST_NAME
        if parsed.is_web or not key.strip("/") or not known or not text.isprintable():
            raise InvalidParameter("inventory", without_query(text), ALLOWED)
        return found

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def list_format(self) -> str | None:
        """The format of a list of one file; None: an inventory with a manifest."""
        return next((form for ending, form in LIST_ENDINGS.items() if self.key.endswith(ending)), None)

    @property
    def folder(self) -> str:
        """The prefix below which everything lies that is read: of an inventory, the folder of its configuration, which
        has the manifests in dated folders, and the data beside these. Empty: the complete bucket."""
        if self.key.endswith("/"):
            return self.key
        above = self.key[: self.key.rfind("/") + 1]
        return above if self.list_format else above[: above.rstrip("/").rfind("/") + 1]

    @property
    def root(self) -> DatasetUrl:
        """Of the store that has the files."""
        return DatasetUrl(self.scheme, self.bucket, "")

    @property
    def folder_url(self) -> DatasetUrl:
        return DatasetUrl(self.scheme, self.bucket, self.folder)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}"
