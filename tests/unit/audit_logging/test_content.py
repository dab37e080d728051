"""Bodies that were compressed on the way: looked into within bounds, whoever compressed them."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_logging.content import inflate


@given(st.lists(st.binary(max_size=40_000), min_size=1, max_size=5))
def test_gzip_of_several_members_is_their_contents_together(parts: list[bytes]) -> None:
    """As GZipMiddleware makes it of an asynchronous stream."""
    raw = b"".join(gzip.compress(part, 1, mtime=0) for part in parts)
    whole = b"".join(parts)
    assert inflate(raw, "gzip", len(whole)) == whole
    if whole:
        assert inflate(raw, "gzip", len(whole) - 1) is None


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        (gzip.compress(b"a", mtime=0) + b"more", "gzip"),
        (gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)[:-1], "gzip"),
        (zlib.compress(b"a") + zlib.compress(b"b"), "deflate"),
        (gzip.compress(b"", mtime=0) * 10_000, "gzip"),
        (b"", "gzip"),
        (gzip.compress(b"a", mtime=0), "br"),
    ],
)
def test_what_is_no_such_thing_is_refused(raw: bytes, encoding: str) -> None:
    with pytest.raises(zlib.error):
        inflate(raw, encoding, 1000)
