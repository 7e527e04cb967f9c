"""Opens the blobs of a registry."""

from __future__ import annotations

from pathlib import Path

from csi_driver.model.dataset import Credentials, DatasetUrl, StoreOptions
from csi_driver.model.errors import UnsupportedUrl
from csi_driver.objects.blobs.blob_store import BlobStore
from csi_driver.objects.blobs.directory_blobs import DirectoryBlobs
from csi_driver.objects.retrying import RetryPolicy


def open_blobs(location: str, options: StoreOptions, credentials: Credentials) -> BlobStore:
    """A directory (a path or ``file://``), or a prefix of a bucket (``s3://``, ``gs://``, ``az://``).

    Raises UnsupportedUrl, InvalidParameter, CredentialsRejected, RegistryUnavailable.
    """
    if "://" not in location:
        return DirectoryBlobs(Path(location))
    url = DatasetUrl.parse(location)
    if url.scheme == "file":
        return DirectoryBlobs(Path("/" + url.prefix))
    if url.scheme not in ("s3", "gs", "az"):
        raise UnsupportedUrl(f"{url.scheme}:// cannot hold a registry; give a directory or s3://, gs:// or az://")
    # Imported here: a registry in a directory needs neither the library nor its 2 MB.
    from csi_driver.objects.blobs.object_blobs import ObjectBlobs
    from csi_driver.objects.obstore.obstore_factory import obstore_of

    store, store_location = obstore_of(url, options, credentials)
    return ObjectBlobs(store, store_location, url.prefix, RetryPolicy(options.deadline_s))
