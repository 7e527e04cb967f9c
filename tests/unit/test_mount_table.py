"""The mount table: the parser, and the lookup of the mount at a path."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_driver.mounts.mount_table import MountEntry, MountTable, parse_line, real_mount_point

ROOT = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw"


def table(*lines: bytes) -> MountTable:
    return MountTable.parse(b"\n".join((ROOT, *lines)) + b"\n")


def test_a_line_with_every_kind_of_field_is_parsed() -> None:
    line = rb"36 35 98:0 /mnt1 /mnt2 ro,noatime shared:1 master:7 - fuse.hayloft s3://b\040x ro,user_id=0"
    assert parse_line(line) == MountEntry(
        mount_id=36,
        parent_id=35,
        device="98:0",
        root="/mnt1",
        mount_point="/mnt2",
        options=frozenset({"ro", "noatime"}),
        fs_type="fuse.hayloft",
        source="s3://b x",
        super_options=frozenset({"ro", "user_id=0"}),
    )


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [(rb"\040", " "), (rb"\011", "\t"), (rb"\012", "\n"), (rb"\134", "\\"), (rb"\043", "#"), (rb"\134040", "\\040")],
)
def test_octal_escapes_are_decoded_once(escaped: bytes, plain: str) -> None:
    entry = parse_line(b"1 27 0:5 /r" + escaped + b" /m" + escaped + b" rw - tmpfs s" + escaped + b" rw")
    assert (entry.root, entry.mount_point, entry.source) == ("/r" + plain, "/m" + plain, "s" + plain)


def test_a_mount_point_that_is_not_utf8_is_found_by_its_path() -> None:
    path = b"/data/\xff\xfe"
    found = table(b"40 27 0:5 / " + path + b" rw - tmpfs tmpfs rw").at(path)
    assert found is not None
    assert found.mount_point == "/data/\udcff\udcfe"


def test_a_comma_that_is_part_of_an_option_does_not_split_it() -> None:
    entry = parse_line(rb"1 27 0:5 / /m rw - overlay overlay rw,lowerdir=/a\054b")
    assert entry.super_options == {"rw", "lowerdir=/a,b"}


def test_an_empty_source_is_parsed_as_empty() -> None:
    assert parse_line(b"1 27 0:5 / /m rw - tmpfs  rw").source == ""


def test_a_line_whose_options_contain_a_bare_space_is_parsed() -> None:
    assert "name=a b" in parse_line(b"1 27 0:5 / /m rw - 9p src rw,name=a b").super_options


def test_the_root_of_a_bind_mount_whose_directory_is_deleted_is_recognised() -> None:
    entry = parse_line(b"1 27 0:5 /gone//deleted /m rw - tmpfs t rw")
    assert (entry.root, entry.root_deleted) == ("/gone", True)


@pytest.mark.parametrize(
    "line", [b"", b"x", b"1 27 0:5 / /m rw", b"1 27 0:5 / /m rw - tmpfs t", b"a b 0:5 / /m rw - t t rw"]
)
def test_an_invalid_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a line of a mount table"):
        parse_line(line)


def test_read_only_by_mount_or_by_file_system() -> None:
    assert parse_line(b"1 27 0:5 / /m ro - tmpfs t rw").is_read_only
    assert parse_line(b"1 27 0:5 / /m rw - tmpfs t ro").is_read_only
    assert not parse_line(b"1 27 0:5 / /m rw,errors=remount-ro - tmpfs t rw").is_read_only


def test_the_topmost_of_stacked_mounts_is_found_in_any_order_of_lines() -> None:
    lower = b"40 27 0:5 / /m rw - tmpfs lower rw"
    upper = b"41 40 0:6 / /m rw - tmpfs upper rw"
    for lines in ((lower, upper), (upper, lower)):
        found = table(*lines).at("/m")
        assert found is not None
        assert found.source == "upper"


def test_a_mount_that_is_hidden_by_a_mount_on_a_parent_directory_is_not_found() -> None:
    hidden = table(b"40 27 0:5 / /a/b rw - tmpfs inner rw", b"41 27 0:6 / /a rw - tmpfs above rw")
    assert hidden.at("/a/b") is None
    assert [entry.source for entry in hidden.below("/a")] == ["inner"]
    holder = hidden.containing("/a/b")
    assert holder is not None
    assert holder.source == "above"


def test_nothing_is_found_at_a_directory_inside_a_mount() -> None:
    mounts = table(b"40 27 0:5 / /a rw - tmpfs t rw")
    assert mounts.at("/a/b") is None
    assert mounts.at("/ab") is None
    assert mounts.below("/a") == ()


def test_paths_are_compared_without_doubled_slashes_and_dots() -> None:
    mounts = table(b"40 27 0:5 / /a/b rw - tmpfs t rw")
    assert mounts.at("//a/./b/") is not None
    assert mounts.at("/") is not None
    with pytest.raises(ValueError, match="not an absolute path"):
        mounts.at("a/b")


def test_mounts_whose_parent_is_outside_of_a_chroot_are_found() -> None:
    mounts = MountTable.parse(b"40 27 0:5 / /data rw - tmpfs t rw\n41 40 0:6 / /data/x rw - tmpfs u rw\n")
    found = mounts.at("/data/x")
    assert found is not None
    assert found.source == "u"


def test_every_mount_of_a_table_of_ten_thousand_lines_is_found() -> None:
    lines = [b"%d 27 0:%d / /pods/%d/mount rw - fuse.hayloft s rw" % (i, i, i) for i in range(100, 10_100)]
    mounts = table(*lines)
    assert all(mounts.at(f"/pods/{i}/mount") is not None for i in range(100, 10_100))
    assert len(mounts.below("/pods")) == 10_000


def test_this_process_has_a_root() -> None:
    root = MountTable.read().at("/")
    assert root is not None
    assert root.mount_point == "/"


def test_links_in_the_parents_of_a_mount_point_are_resolved_and_the_last_component_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "last").symlink_to("/etc")
    assert real_mount_point(tmp_path / "link" / "last") == tmp_path.resolve() / "real" / "last"


# The kernel prints bytes without NUL, and escapes the characters that would break the line.
_words = st.binary(min_size=1, max_size=12).map(lambda word: word.replace(b"\0", b"x"))
_paths = st.lists(_words.map(lambda word: word.replace(b"/", b"y")), max_size=4).map(
    lambda parts: b"/" + b"/".join(parts)
)
_options = st.frozensets(_words.map(lambda word: word.replace(b",", b";")), min_size=1, max_size=4)
_tags = st.lists(
    st.sampled_from([b"shared:3", b"master:9", b"propagate_from:2", b"unbindable"]), max_size=3, unique=True
)


def _escaped(field: bytes) -> bytes:
    for character in b"\\ \t\n#":  # the backslash first
        field = field.replace(bytes((character,)), b"\\%03o" % character)
    return field


def _decoded(fields: frozenset[bytes]) -> frozenset[str]:
    return frozenset(field.decode("utf-8", "surrogateescape") for field in fields)


@given(_paths, _paths, _options, _tags, _words, _words, _options, st.booleans())
def test_lines_in_the_kernels_format_are_parsed(
    root: bytes,
    mount_point: bytes,
    options: frozenset[bytes],
    tags: list[bytes],
    fs_type: bytes,
    source: bytes,
    super_options: frozenset[bytes],
    deleted: bool,
) -> None:
    line = b" ".join(
        [
            b"40 27 0:5",
            _escaped(root) + (b"//deleted" if deleted else b""),
            _escaped(mount_point),
            b",".join(_escaped(option) for option in sorted(options)),
            *tags,
            b"-",
            _escaped(fs_type),
            _escaped(source),
            b",".join(_escaped(option) for option in sorted(super_options)),
        ]
    )
    entry = parse_line(line)
    as_bytes = [field.encode("utf-8", "surrogateescape") for field in (entry.root, entry.mount_point, entry.source)]
    assert as_bytes == [root, mount_point, source]
    assert entry.fs_type == fs_type.decode("utf-8", "surrogateescape")
    assert entry.options == _decoded(options)
    assert entry.super_options == _decoded(super_options)
    assert entry.root_deleted is deleted
