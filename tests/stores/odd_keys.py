"""Keys that stores and drivers get wrong, and what a server of files can make of them."""

from __future__ import annotations

from tests.contracts.object_store import ODD_KEYS

UNCHANGED_KEYS = (
    *ODD_KEYS,
    "new\nline",
    "tab\tkey",
    "bell\x07key",
    "back\\slash",
    ".hidden",
    "space at the end ",
    "dots...",
    "<angle>&amp;",
    "Case",
    "case",
)
RENAMED_KEYS = {
    "a": "a~ca234c55",  # the directory wins
    "a//b": "a/%2F/b",
    "a/./b": "a/%2E/b",
    "/lead": "%2F/lead",
    "../x": "%2E%2E/x",
    "a/b": "a/b",
}
"""Key, and its path by docs/keys.md."""
DIRECTORY_KEY = "trail/"

NO_SUCH_PATHS = {
    "a//b": "a file system has no empty names",
    "/lead": "a file system has no empty names",
    "a/./b": "a file system has no such names",
    "../x": "a file system has no such names",
    "a/b": "a name is a file or a directory",
}
NOT_IN_A_DIRECTORY = {**NO_SUCH_PATHS, "trail/": "a file system has directories for these"}
"""The odd keys that no server of files can hold, if it does not take trouble."""
