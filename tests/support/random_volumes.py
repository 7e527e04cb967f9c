"""Random volume contexts and Secrets: those of a careless user, of an attacker, and of no person at all.

Every value that is secret, or may be one in the wrong place, contains ``MARK`` in each of its lines: it must appear in
no log, no status and no message.
"""

from __future__ import annotations

import json

from hypothesis import strategies as st

from tests.support.examples import random_examples

EXAMPLES = random_examples(300)

MARK = "pK9xV7qZ"[::-1]
"""Not as a literal: hypothesis draws the literals of a module as texts."""

# Without the mark, which hypothesis has been seen to draw.
_TEXT = st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda text: MARK not in text)
_ODD = st.sampled_from(
    [
        "",
        " ",
        "\n",
        "\x00",
        "-1",
        "0",
        "1e999",
        "NaN",
        "9" * 400,
        "true",
        "None",
        "..",
        "../../etc",
        "%00",
        "${pvc.name}",
        "{" * 50,
        "[" * 50,
        "a" * 5000,
        "\u202e",
        "\U0001d54f",
        "é\r\nX-Header: 1",
        "'; --",
        "<!DOCTYPE x>",
        "\t",
        "\ufffd",
    ]
)
_HOSTS = st.sampled_from(
    [
        "127.0.0.1:9",
        "[::1]:9",
        "localhost:9",
        "169.254.169.254",
        "0x7f000001:9",
        "127.1:9",
        "[::ffff:127.0.0.1]:9",
        "",
        "127.0.0.1:99999",
        "user@127.0.0.1:9",
        f"user:{MARK}@127.0.0.1:9",
        "[::1",
        "xn--nxasmq6b",
        "a" * 300,
        "*",
        "%41",
    ]
)
_ENDPOINTS = st.builds(
    "{}://{}{}".format, st.sampled_from(["http", "https", "HTTP", "ftp", "file", "", "s3"]), _HOSTS, _TEXT
)
_GLOBS = st.text("ab/*?[]!-{}.,\n\\^", max_size=30) | st.just("**/a/**/a/**/a/**/b") | st.just("[")
_SCHEMES = st.sampled_from(
    ["s3", "gs", "gcs", "az", "http", "https", "file", "memory", "S3", "abfs", "zip", "simplecache", "s3::x"]
)
_URLS = st.builds(
    "{}://{}/{}".format,
    _SCHEMES,
    _HOSTS | st.sampled_from(["bucket", "Bucket_X", "a", "bucket.with.dots", "b" * 64, "container@account"]),
    _TEXT | st.sampled_from(["train/", "a//b", "../x", "%2e%2e/", "?token=" + MARK, "#x"]),
)
_DURATIONS = st.sampled_from(["1s", "0", "1h30m", "-1s", "1e9d", "999d", "1ms", "s", "1.5.5s"])

_VALUES: dict[str, st.SearchStrategy[str]] = {
    "url": _URLS,
    "inventory": st.builds("{}{}".format, _URLS, st.sampled_from(["", "/", ".csv", "/manifest.json", "x.parquet"])),
    "include": _GLOBS,
    "exclude": _GLOBS,
    "endpoint": _ENDPOINTS,
    "region": st.sampled_from(["eu-central-1", "us-east-1", "a.b/c", "@host", "x" * 100]),
    "addressingStyle": st.sampled_from(["auto", "path", "virtual", "Path"]),
    "anonymous": st.sampled_from(["true", "false", "yes"]),
    "requesterPays": st.sampled_from(["true", "false"]),
    "billingProject": st.sampled_from(["team-a-1234", "example.com:team", "a/b", "?x=1", " "]),
    "caBundle": st.sampled_from(["-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----", "/etc/passwd", "x"]),
    "mirrors": st.lists(
        st.builds(
            "{}{}".format,
            _URLS,
            st.sampled_from(["", "?endpoint=http://h", "?region=x&region=y", f"?key={MARK}"]),
        ),
        max_size=3,
    ).map(",".join),
    "mirrorCheck": st.sampled_from(["content", "size", "etag"]),
    "mirrorOrder": st.sampled_from(["nearest", "listed", "fastest"]),
    "backend": st.sampled_from(["auto", "obstore", "s3fs", "none"]),
    "verifyChecksums": st.sampled_from(["auto", "full", "off"]),
    "cacheReservation": st.sampled_from(["0", "1KiB", "1EiB", "-1", "1GB", "90%"]),
    "uid": st.sampled_from(["0", "1000", "4294967295", "-1", "\uff11"]),
    "gid": st.sampled_from(["0", "4294967294", "x"]),
    "fileMode": st.sampled_from(["0444", "444", "0777", "8", "0o444"]),
    "dirMode": st.sampled_from(["0555", "0000", "07777"]),
    "opens": st.sampled_from(["auto", "kernel", "daemon", "Kernel", "both"]),
    "mountOptions": st.sampled_from(["noexec", "read_ahead_kb=8192", "rw", "suid,dev", "read_ahead_kb=-1", ","]),
    "snapshotMaxAge": _DURATIONS,
    "requestTimeout": _DURATIONS,
    "deadline": _DURATIONS,
    "view": st.sampled_from(["auto", "fuse", "materialised"]),
    "profile": st.sampled_from(["training", "inference", "analytics", "gaming"]),
    "readAhead": st.sampled_from(["0", "64MiB", "1GiB", "2GiB", "1kB"]),
    "wholeFiles": st.sampled_from(["none", "weights", "all", "some"]),
    "warmup": st.sampled_from(["none", "background", "wait", "memory"]),
    "warmupMemoryInclude": _GLOBS,
    "warmupTrace": st.sampled_from(["traces/start.arrow", "/start.arrow", "../start.arrow"]),
    "warmupInclude": _GLOBS,
    "warmupBandwidth": st.sampled_from(["0", "200MiB/s", "1B/s", "2Gbit/s"]),
    "bandwidth": st.sampled_from(["0", "1MiB/s", "64KiB/s", "2Gbit/s", "fast"]),
    "warmupConcurrency": st.sampled_from(["4", "0", "65", "1"]),
}
_MISPLACED = st.sampled_from(["secretAccessKey", "password", "token", "csi.storage.k8s.io/serviceAccount.tokens"])
"""Names under which a value is a secret that does not belong there."""
_UNKNOWN_NAMES = st.sampled_from(["urls", "Url", "__class__", "", "\0", "csi.storage.k8s.io/pod.name"])


def _marked(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The mark in each line, and around it what people paste: line breaks, blanks, carriage returns."""
    around = st.sampled_from(["", "\n", " ", "\r\n", "\t", "\n\n"])
    lines = st.lists(values.map(lambda text: f"{MARK}{text.replace(chr(10), '')}"), min_size=1, max_size=3)
    return st.builds(lambda before, inner, after: before + "\n".join(inner) + after, around, lines, around)


_SECRET_TEXT = _marked(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=40)
)
_KEY = st.text("ABab01", max_size=40).map(lambda text: f"{MARK}{text[: len(text) // 4 * 4]}")
"""Has the grammar of every key and token: letters and digits, base64."""

_ACCOUNTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["service_account", "authorized_user", "external_account", ""]),
        "client_email": st.sampled_from(["a@b.iam.gserviceaccount.com", "", MARK]) | _TEXT,
        "private_key": _SECRET_TEXT,
        "private_key_id": _KEY,
        "token_uri": _ENDPOINTS,
        "gcs_base_url": _ENDPOINTS,
        "disable_oauth": st.booleans(),
        "universe_domain": _TEXT,
        "client_id": st.none() | st.integers() | _TEXT,
    },
)
_JSON = _ACCOUNTS.map(json.dumps) | st.recursive(st.none() | st.integers() | _TEXT, st.lists, max_leaves=3).map(
    json.dumps
)

_SECRETS: dict[str, st.SearchStrategy[str]] = {
    "access_key_id": st.sampled_from(["AKIAEXAMPLE", " AKIA\n", "a/b", "x" * 300]) | _TEXT,
    "secret_access_key": _KEY | _SECRET_TEXT,
    "session_token": _KEY | _SECRET_TEXT,
    "service_account_json": _JSON | _SECRET_TEXT,
    "account_name": st.sampled_from(["account", "host.example/x", "Account", "a@b", ""]) | _TEXT,
    "account_key": _KEY | _SECRET_TEXT,
    "sas_token": st.builds("{}sv=2024-11-04&sig={}".format, st.sampled_from(["", "?"]), _KEY) | _SECRET_TEXT,
    "username": _TEXT,
    "password": _KEY | _SECRET_TEXT,
    "token": _KEY | _SECRET_TEXT,
}
_UNKNOWN_SECRETS = st.sampled_from(["endpoint", "AWS_SECRET", "secretkey", "keyfile", "GOOGLE_CREDENTIALS", ""])


def _chosen(values: dict[str, st.SearchStrategy[str]], most: int) -> st.SearchStrategy[dict[str, str]]:
    def of(names: list[str]) -> st.SearchStrategy[dict[str, str]]:
        return st.fixed_dictionaries({name: values[name] | _ODD for name in names})

    return st.lists(st.sampled_from(sorted(values)), unique=True, max_size=most).flatmap(of)


def _united(*parts: dict[str, str]) -> dict[str, str]:
    return {key: value for part in parts for key, value in part.items()}


def contexts(endpoint: str) -> st.SearchStrategy[dict[str, str]]:
    """Volume attributes. About half of them are correct but for some values, with a store at ``endpoint``."""
    right = st.sampled_from(
        [
            {"url": "s3://bucket/", "endpoint": endpoint, "addressingStyle": "path", "region": "us-east-1"},
            {"url": "gs://bucket/", "endpoint": endpoint},
            {"url": "az://bucket/", "endpoint": endpoint},
            {"url": f"{endpoint}/bucket/"},
        ]
    )
    misplaced = st.dictionaries(_MISPLACED, _SECRET_TEXT, max_size=1) | st.dictionaries(
        _UNKNOWN_NAMES, _TEXT, max_size=1
    )
    quick = st.just({"deadline": "1s", "requestTimeout": "1s"})
    usual = st.builds(_united, right, quick, _chosen({k: v for k, v in _VALUES.items() if k != "url"}, 2))
    return usual | st.builds(_united, quick, _chosen(_VALUES, 6), misplaced)


def secrets() -> st.SearchStrategy[dict[str, str]]:
    pairs = st.sampled_from(
        [
            ("access_key_id", "secret_access_key"),
            ("account_name", "account_key"),
            ("account_name", "sas_token"),
            ("service_account_json",),
            ("username", "password"),
            ("token",),
            ("access_key_id", "secret_access_key", "session_token"),
        ]
    )
    usual = pairs.flatmap(lambda names: st.fixed_dictionaries({name: _SECRETS[name] for name in names}))
    return usual | st.builds(_united, _chosen(_SECRETS, 4), st.dictionaries(_UNKNOWN_SECRETS, _SECRET_TEXT, max_size=1))
