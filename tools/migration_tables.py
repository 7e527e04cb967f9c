"""The tables of ``docs/migration.md``: options of other drivers and ours, from the rules that translate them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from csi_driver.cli.migration import csi_s3_rules, gcsfuse_rules, mountpoint_rules
from csi_driver.cli.migration.translation_rules import COMMON_RULES, Outcome, Rule


def mountpoint(repository: Path) -> str:
    """Of Mountpoint for Amazon S3."""
    return _table(mountpoint_rules.ATTRIBUTES, "attribute") + "\n" + _table(mountpoint_rules.OPTIONS, "mount option")


def gcsfuse(repository: Path) -> str:
    """Of Cloud Storage FUSE."""
    return _table(gcsfuse_rules.ATTRIBUTES, "attribute") + "\n" + _table(gcsfuse_rules.OPTIONS, "mount option")


def csi_s3(repository: Path) -> str:
    """Of csi-s3, and what it mounts with."""
    tables = [
        (csi_s3_rules.ATTRIBUTES, "parameter"),
        (csi_s3_rules.SECRET_KEYS, "key of the Secret"),
        (csi_s3_rules.GEESEFS, "option of GeeseFS and goofys"),
        (csi_s3_rules.S3FS, "option of s3fs"),
        (csi_s3_rules.RCLONE, "option of rclone"),
    ]
    return "\n".join(_table(rules, title) for rules, title in tables)


def common(repository: Path) -> str:
    """Flags of mount(8) and FUSE, of any of them."""
    return _table(COMMON_RULES, "mount option", leave_out=())


TABLES: dict[str, Callable[[Path], str]] = {
    "options of Mountpoint": mountpoint,
    "options of Cloud Storage FUSE": gcsfuse,
    "options of csi-s3": csi_s3,
    "options of all": common,
}


def _table(rules: Sequence[Rule], title: str, leave_out: Sequence[Rule] = COMMON_RULES) -> str:
    rows = "".join(f"| {_names(rule)} | {_text(rule)} |\n" for rule in rules if rule not in leave_out)
    return f"| {title} | Hayloft |\n|---|---|\n{rows}"


def _names(rule: Rule) -> str:
    return ", ".join(f"`{name}`" for name in rule.names)


def _text(rule: Rule) -> str:
    return rule.text if rule.outcome is Outcome.PARAMETER else f"{rule.outcome}: {rule.text}"
