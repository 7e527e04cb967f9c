"""Servers that other people wrote, started on loopback, and one conformance run for all of them: `make stores`."""

import pytest

pytest.register_assert_rewrite("tests.stores.conformance")
