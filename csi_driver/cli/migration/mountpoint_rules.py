"""Mountpoint for Amazon S3: volume attributes of its CSI driver, and the flags of ``mount-s3`` as mount options."""

from __future__ import annotations

from collections.abc import Mapping

from csi_driver.cli.migration.translation_rules import (
    ALWAYS,
    BUCKET,
    COMMON_RULES,
    DAEMON_LOG,
    NODE_CACHE,
    OWN_CLIENT,
    PREFIX,
    READ_ONLY,
    NotTranslatable,
    age,
    becomes,
    dropped,
    impossible,
    mode,
    same,
    switch,
)

DRIVER = "s3.csi.aws.com"


def _identity(text: str) -> Mapping[str, str]:
    if text != "driver":
        raise NotTranslatable("the identity of the pod is for inline volumes: `identity: pod` with `awsRoleArn`")
    return {}


ATTRIBUTES = (
    becomes("bucketName", "`url: s3://BUCKET/PREFIX`", same(BUCKET)),
    becomes(
        "authenticationSource",
        "nothing for `driver`, the identity of the node pods; `pod` is not possible in a PersistentVolume, see "
        "`identity: pod` of inline volumes",
        _identity,
    ),
    dropped("stsRegion", "the region of the volume; `AWS_ENDPOINT_URL_STS` of the daemon names another service"),
    dropped(
        "cache cacheEmptyDirSizeLimit cacheEmptyDirMedium cacheEphemeralStorageClassName "
        "cacheEphemeralStorageResourceRequest",
        NODE_CACHE,
    ),
    dropped(
        "mountpointContainerResources* mountpointPodServiceAccountName",
        "there is no pod for each volume: `cache.resources` of the chart",
    ),
    impossible("mountpointEnv.*", "proxies are variables of the daemon: `HTTPS_PROXY` in its Secret"),
)

OPTIONS = (
    becomes("prefix", "the path of `url`", same(PREFIX)),
    becomes("region", "`region`", same("region")),
    becomes("endpoint-url", "`endpoint`", same("endpoint")),
    becomes("force-path-style", "`addressingStyle: path`", switch("addressingStyle", "path")),
    becomes("requester-pays", "`requesterPays: true`", switch("requesterPays")),
    becomes("no-sign-request", "`anonymous: true`", switch("anonymous")),
    becomes("uid", "`uid`", same("uid")),
    becomes("gid", "`gid`", same("gid")),
    becomes("file-mode", "`fileMode`, without write bits", mode("fileMode")),
    becomes("dir-mode", "`dirMode`, without write bits", mode("dirMode")),
    becomes(
        "metadata-ttl",
        "`snapshotMaxAge`: a mount shows one snapshot, and new ones list again after that time",
        age("snapshotMaxAge"),
    ),
    dropped("negative-metadata-ttl", "a snapshot is complete: what it does not have, does not exist"),
    dropped(
        "allow-delete allow-overwrite incremental-upload storage-class sse sse-kms-key-id upload-checksums "
        "write-part-size",
        READ_ONLY,
    ),
    dropped("cache max-cache-size cache-block-size cache-xz", NODE_CACHE),
    dropped(
        "maximum-throughput-gbps max-threads max-memory-target part-size read-part-size bind user-agent-prefix "
        "aws-max-attempts",
        f"{OWN_CLIENT}; `bandwidth`, `readAhead` and `deadline` are ours",
    ),
    dropped("log-directory log-metrics debug debug-crt no-log otlp-endpoint otlp-export-interval l d", DAEMON_LOG),
    dropped("foreground f bucket-type", ALWAYS),
    impossible("transfer-acceleration dual-stack", "name the endpoint: `https://s3.dualstack.REGION.amazonaws.com`"),
    impossible("profile", "credentials come from a Secret or from the account of the node pods"),
    impossible("expected-bucket-owner", "Hayloft does not compare it; a policy of IAM can"),
    impossible("ca-bundle", "`caBundle` is the text of the certificates, not a path"),
    *COMMON_RULES,
)
