"""Names of parameters that there are not, and what was meant."""

from __future__ import annotations

from collections.abc import Collection

from csi_driver.model.errors import UnknownParameter
from csi_driver.volumes import parameter_text as text

_SECRET_WORDS = ("secret", "password", "token", "accesskey", "keyid", "credential", "accountkey", "saskey")

_NAMES_ELSEWHERE = {
    **dict.fromkeys(("bucket", "bucketname", "container", "containername", "prefix", "path", "subpath"), "url"),
    **dict.fromkeys(("source", "uri", "location", "remote", "dataset", "share", "server"), "url"),
    **dict.fromkeys(("host", "hostname", "serviceurl", "endpointurl", "s3endpoint", "s3url"), "endpoint"),
    **dict.fromkeys(("awsregion", "bucketregion", "zone"), "region"),
    **dict.fromkeys(("pathstyle", "forcepathstyle", "usepathstyle"), "addressingStyle"),
    **dict.fromkeys(("cacert", "cacertificate", "tlsca", "certificate"), "caBundle"),
    **dict.fromkeys(("mirror", "replicas", "fallback", "fallbacks", "failover", "secondary"), "mirrors"),
    **dict.fromkeys(("filter", "filters", "glob", "globs", "files"), "include"),
    **dict.fromkeys(("ignore", "excludes"), "exclude"),
    **dict.fromkeys(("s3inventory", "inventoryurl", "inventorymanifest", "listing", "objectlist"), "inventory"),
    **dict.fromkeys(("mode", "filemodes", "umask"), "fileMode"),
    **dict.fromkeys(("user", "owner", "userid"), "uid"),
    **dict.fromkeys(("group", "groupid"), "gid"),
    **dict.fromkeys(("options", "mountflags", "flags"), "mountOptions"),
    **dict.fromkeys(("prefetch", "preload", "prewarm"), "warmup"),
    **dict.fromkeys(("workload", "usecase", "accesspattern", "preset"), "profile"),
    **dict.fromkeys(("trace", "prefetchtrace", "replay"), "warmupTrace"),
    **dict.fromkeys(("readaheadkb", "readaheadsize", "prefetchsize"), "readAhead"),
    **dict.fromkeys(("timeout",), "requestTimeout"),
    **dict.fromkeys(("cachesize", "reservation"), "cacheReservation"),
    **dict.fromkeys(("authenticationsource", "auth", "authtype", "identitymode", "useidentity"), "identity"),
    **dict.fromkeys(("rolearn", "role", "iamrole", "assumerole", "stsrolearn"), "awsRoleArn"),
    **dict.fromkeys(("clientid", "managedidentityclientid", "azureclient"), "azureClientId"),
    **dict.fromkeys(("tenantid", "azuretenant"), "azureTenantId"),
    **dict.fromkeys(("storageaccount", "storageaccountname", "accountname"), "azureStorageAccount"),
    **dict.fromkeys(("gcpserviceaccount", "googleaccount", "serviceaccount"), "googleServiceAccount"),
    **dict.fromkeys(("workloadidentityprovider", "gcpaudience", "workloadprovider"), "googleWorkloadProvider"),
    **dict.fromkeys(("stsaudience", "tokenaudience"), "audience"),
}
"""What other drivers and tools call a parameter, in lower case and without punctuation."""


def unknown_parameter(key: str, names: Collection[str]) -> UnknownParameter:
    """Names the key and never its value, which may be a misplaced password."""
    letters = "".join(character for character in key.lower() if character.isalnum())
    if any(word in letters for word in _SECRET_WORDS):
        return UnknownParameter(key, "credentials belong in a Secret, never in parameters; if this was one, replace it")
    known = _NAMES_ELSEWHERE.get(letters) or text.nearest(key, names)
    if known is None:
        return UnknownParameter(key, f"there are {', '.join(names)}")
    hint = "; it names both bucket and prefix: s3://bucket/prefix" if known == "url" else ""
    return UnknownParameter(key, f"use {known}{hint}")
