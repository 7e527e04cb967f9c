"""csi-s3, of ctrox and of Yandex: parameters, and the options of the programs that it mounts with."""

from __future__ import annotations

from csi_driver.cli.migration.translation_rules import (
    BUCKET,
    COMMON_RULES,
    CREDENTIALS,
    DAEMON_LOG,
    NODE_CACHE,
    OWN_CLIENT,
    PREFIX,
    READ_ONLY,
    Rule,
    age,
    becomes,
    dropped,
    impossible,
    mask,
    mode,
    same,
    switch,
)

VERIFIED = "certificates are verified: `caBundle` has those of the store"

CTROX = "ch.ctrox.csi.s3-driver"
YANDEX = "ru.yandex.s3.csi"

ATTRIBUTES = (
    becomes("bucket", "`url: s3://BUCKET/PREFIX`", same(BUCKET)),
    becomes("prefix", "the path of `url`", same(PREFIX)),
    dropped("mounter", "Hayloft mounts by itself; the `options` of the mounter are translated one by one"),
    dropped("usePrefix", "it says whether all volumes of the class show the same prefix, which they do here"),
    dropped("capacity", "a volume shows what is in the bucket, whatever its size"),
)
"""``options`` has a table for each mounter."""

SECRET_KEYS = (
    becomes("endpoint", "`endpoint` of the volume", same("endpoint")),
    becomes("region", "`region` of the volume", same("region")),
)
"""Of its Secret, besides ``accessKeyID`` and ``secretAccessKey``, which become ``access_key_id`` and
``secret_access_key``."""

GEESEFS = (
    becomes("endpoint", "`endpoint`", same("endpoint")),
    becomes("region", "`region`", same("region")),
    becomes("uid", "`uid`", same("uid")),
    becomes("gid", "`gid`", same("gid")),
    becomes("file-mode", "`fileMode`, without write bits", mode("fileMode")),
    becomes("dir-mode", "`dirMode`, without write bits", mode("dirMode")),
    becomes("requester-pays", "`requesterPays: true`", switch("requesterPays")),
    becomes("subdomain", "`addressingStyle: virtual`", switch("addressingStyle", "virtual")),
    becomes("stat-cache-ttl", "`snapshotMaxAge`", age("snapshotMaxAge")),
    dropped("no-systemd setuid setgid f", "kubelet mounts, and the mounts outlive the driver's pods"),
    dropped("memory-limit use-enomem entry-limit gc-interval", "memory is that of the cache daemon: `cache.resources`"),
    dropped("cache cache-* max-disk-cache-fd", NODE_CACHE),
    dropped("read-ahead* small-read-* large-read-* read-merge", f"{OWN_CLIENT}; `readAhead` and `profile` are ours"),
    dropped("debug* log-file print-stats pprof", DAEMON_LOG),
    dropped(
        "storage-class cold-min-size sse sse-kms acl max-flushers max-parallel-* single-part part-sizes "
        "enable-patch drop-patch-conflicts prefer-patch-uploads max-merge-copy ignore-fsync fsync-on-close "
        "no-expire-multipart multipart-* no-dir-object use-content-type",
        READ_ONLY,
    ),
    impossible("sse-c", "Hayloft has no keys for objects that are encrypted with the customer's own"),
    impossible("iam iam-* project-id profile shared-config", CREDENTIALS),
    impossible("no-verify-ssl", VERIFIED),
    dropped(
        "enable-perms enable-specials no-specials enable-mtime emulate-hardlinks-as-symlinks *-attr",
        "attributes of files are those of the objects; `uid`, `gid`, `fileMode` and `dirMode` are for all of them",
    ),
    dropped(
        "list-type no-detect no-checksum sdk-* cheap no-preload-dir no-implicit-dir disable-xattr refresh-* "
        "flush-filename http-timeout retry-interval read-retry-* cluster* grpc-* ignore-setting-*",
        f"{OWN_CLIENT}; `requestTimeout` and `deadline` are ours",
    ),
    *COMMON_RULES,
)

S3FS = (
    becomes("url", "`endpoint`", same("endpoint")),
    becomes("endpoint", "`region`, which is its name there", same("region")),
    becomes("use_path_request_style", "`addressingStyle: path`", switch("addressingStyle", "path")),
    becomes("uid", "`uid`", same("uid")),
    becomes("gid", "`gid`", same("gid")),
    becomes("umask mp_umask", "`fileMode` and `dirMode`, without write bits", mask("fileMode", "dirMode")),
    becomes("public_bucket", "`anonymous: true`", switch("anonymous")),
    becomes("requester_pays", "`requesterPays: true`", switch("requesterPays")),
    becomes("stat_cache_expire", "`snapshotMaxAge`", age("snapshotMaxAge")),
    dropped("use_cache check_cache_dir_exist del_cache ensure_diskfree enable_content_md5", NODE_CACHE),
    dropped("dbglevel curldbg logfile set_check_cache_sigusr1 f d", DAEMON_LOG),
    dropped("use_sse load_sse_c storage_class default_acl multipart_* nomultipart *copy* max_dirty_data", READ_ONLY),
    impossible("passwd_file ahbe_conf profile iam_role ecs ibm_iam_*", CREDENTIALS),
    impossible("no_check_certificate ssl_verify_hostname", VERIFIED),
    dropped(
        "sigv2 sigv4 listobjectsv2 parallel_count multireq_max max_stat_cache_size retries connect_timeout "
        "readwrite_timeout complement_stat compat_dir enable_noobj_cache notsup_compat_dir instance_name "
        "cipher_suites max_thread_count mime bucket",
        f"{OWN_CLIENT}; `requestTimeout` and `deadline` are ours",
    ),
    *COMMON_RULES,
)

RCLONE = (
    becomes("s3-endpoint", "`endpoint`", same("endpoint")),
    becomes("s3-region", "`region`", same("region")),
    becomes("s3-force-path-style", "`addressingStyle: path`", switch("addressingStyle", "path")),
    becomes("s3-requester-pays", "`requesterPays: true`", switch("requesterPays")),
    becomes("uid", "`uid`", same("uid")),
    becomes("gid", "`gid`", same("gid")),
    becomes("umask", "`fileMode` and `dirMode`, without write bits", mask("fileMode", "dirMode")),
    becomes("file-perms", "`fileMode`, without write bits", mode("fileMode")),
    becomes("dir-perms", "`dirMode`, without write bits", mode("dirMode")),
    becomes("dir-cache-time", "`snapshotMaxAge`", age("snapshotMaxAge")),
    impossible("s3-access-key-id s3-secret-access-key s3-session-token s3-env-auth s3-profile config", CREDENTIALS),
    impossible("no-check-certificate", VERIFIED),
    impossible("include* exclude* filter* files-from*", "`include` and `exclude` are globs of ours: docs/keys.md"),
    dropped("vfs-* cache-*", NODE_CACHE),
    dropped("v verbose log-* debug-fuse stats* use-json-log", DAEMON_LOG),
    dropped("s3-acl s3-storage-class s3-upload-* s3-chunk-size s3-server-side-encryption s3-copy-cutoff", READ_ONLY),
    dropped("daemon* attr-timeout poll-interval volname", "kubelet mounts, and a mount shows one snapshot"),
    dropped(
        "s3-provider s3-list-* s3-no-* buffer-size transfers checkers timeout contimeout retries* "
        "low-level-retries use-server-modtime no-modtime no-checksum use-mmap max-read-ahead async-read "
        "fast-list bwlimit tpslimit",
        f"{OWN_CLIENT}; `readAhead`, `bandwidth` and `deadline` are ours",
    ),
    *COMMON_RULES,
)

MOUNTERS: dict[str, tuple[Rule, ...]] = {"geesefs": GEESEFS, "s3fs": S3FS, "rclone": RCLONE, "goofys": GEESEFS}
"""By the name of the mounter; GeeseFS is a fork of goofys and has its options."""

DEFAULT_MOUNTER = {CTROX: "s3backer", YANDEX: "geesefs"}
"""Of a volume that names none."""
