"""Cloud Storage FUSE: volume attributes of its CSI driver, flags of ``gcsfuse``, and the places of its configuration
(``file-cache:max-size-mb``), which mount options may name too."""

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
    bytes_per_second,
    dropped,
    impossible,
    kernel_read_ahead,
    mode,
    same,
    switch,
)

DRIVER = "gcsfuse.csi.storage.gke.io"
ANNOTATIONS = "gke-gcsfuse/"
"""Of pods, for the sidecar container that each has."""

_PROFILES = {"aiml-training": "training", "aiml-serving": "inference"}


def _profile(text: str) -> Mapping[str, str]:
    if text not in _PROFILES:
        raise NotTranslatable("there is no profile for it: training, inference, analytics")
    return {"profile": _PROFILES[text]}


def _billed(text: str) -> Mapping[str, str]:
    return {"requesterPays": "true", **same("billingProject")(text)}


_SNAPSHOT = "`snapshotMaxAge`: a mount shows one snapshot, and new ones list again after that time"
_WHOLE = "`wholeFiles: all`"

ATTRIBUTES = (
    becomes("bucketName", "`url: gs://BUCKET/PREFIX`", same(BUCKET)),
    becomes("fileCacheForRangeRead", _WHOLE, switch("wholeFiles", "all")),
    becomes("metadataCacheTTLSeconds metadataCacheTtlSeconds", _SNAPSHOT, age("snapshotMaxAge")),
    dropped("fileCacheCapacity", NODE_CACHE),
    dropped("metadataStatCacheCapacity metadataTypeCacheCapacity", "names and sizes are in the snapshot, on the disk"),
    dropped("gcsfuseLoggingSeverity", DAEMON_LOG),
    dropped("disableMetrics enableCloudProfilerForSidecar", "metrics are those of the cache daemon"),
    dropped("skipCSIBucketAccessCheck", "the first mount lists the dataset, and fails if it may not"),
    dropped("sharedMount multiNICIndex", "the pods of a node share one mount of a volume and one cache"),
    impossible(
        "hostNetworkPodKSA identityProvider identityPool",
        "an inline volume is read with the identity of its pod by `identity: pod` and `googleWorkloadProvider`",
    ),
)

OPTIONS = (
    becomes("only-dir", "the path of `url`", same(PREFIX)),
    becomes("uid file-system:uid", "`uid`", same("uid")),
    becomes("gid file-system:gid", "`gid`", same("gid")),
    becomes("file-mode file-system:file-mode", "`fileMode`, without write bits", mode("fileMode")),
    becomes("dir-mode file-system:dir-mode", "`dirMode`, without write bits", mode("dirMode")),
    becomes("billing-project gcs-connection:billing-project", "`requesterPays: true`, `billingProject`", _billed),
    becomes("anonymous-access gcs-auth:anonymous-access", "`anonymous: true`", switch("anonymous")),
    becomes("custom-endpoint gcs-connection:custom-endpoint", "`endpoint`", same("endpoint")),
    becomes(
        "file-cache-cache-file-for-range-read file-cache:cache-file-for-range-read", _WHOLE, switch("wholeFiles", "all")
    ),
    becomes(
        "metadata-cache-ttl-secs metadata-cache:ttl-secs stat-cache-ttl type-cache-ttl",
        _SNAPSHOT,
        age("snapshotMaxAge"),
    ),
    becomes(
        "limit-bytes-per-sec gcs-connection:limit-bytes-per-sec",
        "`bandwidth`, from 1MiB/s",
        bytes_per_second("bandwidth"),
    ),
    becomes(
        "max-read-ahead-kb file-system:max-read-ahead-kb",
        "the mount option `read_ahead_kb`, from 128 to 65536",
        kernel_read_ahead,
    ),
    becomes("profile", "`profile`: `aiml-training` is `training`, `aiml-serving` is `inference`", _profile),
    dropped("implicit-dirs", ALWAYS),
    dropped("file-cache* cache-dir", NODE_CACHE),
    dropped(
        "metadata-cache* stat-cache* type-cache* kernel-list-cache* file-system:kernel-list-cache* "
        "enable-nonexistent* enable-metadata-prefetch",
        "names and sizes are in the snapshot, on the disk",
    ),
    dropped(
        "write:* write-* create-empty-file enable-streaming-writes enable-rapid-* finalize-file-for-rapid "
        "rename-dir-limit file-system:rename-dir-limit temp-dir file-system:temp-dir "
        "enable-atomic-rename-object chunk-*",
        READ_ONLY,
    ),
    dropped("log-* logging:* debug* wire-log foreground", DAEMON_LOG),
    dropped(
        "metrics* cloud-metrics* prometheus-port stackdriver* disable-metrics* monitoring:* cloud-profiler* "
        "enable-cloud-profiler trace-* workload-insight* visualize-*",
        "metrics are those of the cache daemon",
    ),
    impossible("limit-ops-per-sec gcs-connection:limit-ops-per-sec", "`bandwidth` limits bytes alone"),
    impossible(
        "key-file token-url reuse-token-from-url gcs-auth:key-file gcs-auth:token-url",
        "a key belongs in a Secret: `service_account_json`",
    ),
    dropped(
        "app-name client-protocol max-conns-per-host max-idle-conns-per-host sequential-read-size-mb "
        "http-client-timeout max-retry-* retry-* gcs-retries:* gcs-connection:* read-* read:* enable-* "
        "experimental-* ignore-interrupts grpc-* machine-type max-background congestion-threshold disable-* "
        "fuse-max-* kernel-params-file mrd-* inactive-mrd* mount-id dummy-* strong-consistency-on-open "
        "file-system:*",
        f"{OWN_CLIENT}; `requestTimeout`, `deadline` and `readAhead` are ours",
    ),
    *COMMON_RULES,
)
