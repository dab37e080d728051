"""What a body is by its headers: its media type, its charset, and whether it is text."""

from __future__ import annotations

import codecs
import mimetypes
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache

JSON_TYPES = re.compile(r"^application/(?:[\w.+-]+\+)?json$|^text/json$", re.IGNORECASE)
NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq"}
)
FORM_TYPE = "application/x-www-form-urlencoded"
_TEXT_TYPES = re.compile(
    r"^text/|^application/(?:[\w.+-]+\+)?xml$|^application/(?:x-)?javascript$|^application/graphql$"
)
UNKNOWN_TYPE = "unknown type"
# No content type is longer; what follows is not looked at.
_LONGEST = 500
# Supersets of ASCII, and UTF-16 and 32. Others keep secrets in a form that can be read back, or
# decode in time that grows with the square of the length (punycode, idna).
_CHARSETS = re.compile(
    r"utf-(?:8|16|32)(?:-[lb]e|-sig)?|ascii|iso8859-\d+|cp125\d|cp(?:874|932|949|950)|koi8-[rtu]"
    r"|big5|gb(?:2312|k|18030)|euc_(?:jp|kr)|shift_jis|tis-620"
)
_REGISTERED = frozenset(mimetypes.types_map.values())
_LOOKS_KNOWN = re.compile(
    r"(?:application|audio|font|image|message|model|multipart|text|video)/"
    r"[a-z]{1,14}(?:[.+-](?:[a-z]{1,14}|v?\d{1,2}))*"
)


@dataclass(frozen=True, slots=True)
class Body:
    """What is recorded of a body.

    :ivar text: the redacted text, a summary in brackets, or None.
    :ivar state: full | redacted | truncated | omitted_size | omitted_binary | omitted_parse |
        omitted_policy.
    """

    text: str | None
    state: str


def decode_text(raw: bytes, charset: str) -> str:
    """Return `raw` as text.

    :raises LookupError: an unknown charset, or one whose decoder takes hostile input badly.
    :raises ValueError: `raw` is not in that charset.
    """
    name = codecs.lookup(charset).name
    if not _CHARSETS.fullmatch(name):
        raise LookupError(charset)
    if name.startswith("utf-") and name != "utf-8" and b"\x00" not in raw[4:]:
        # Text of one byte a letter, called something else: it would read as nonsense.
        raise LookupError(charset)
    return raw.decode(charset)


def media_and_charset(content_type: str) -> tuple[str, str]:
    """Return the media type, in lower case, and the charset: UTF-8 where none is given."""
    return _media_and_charset(content_type[:_LONGEST])


@lru_cache(maxsize=256)
def _media_and_charset(content_type: str) -> tuple[str, str]:
    media, _, parameters = content_type.partition(";")
    charset = "utf-8"
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip():
            charset = value.strip().strip('"')[:40]
    return media.strip().lower(), charset


@lru_cache(maxsize=256)
def is_textual(media: str) -> bool:
    """Whether bodies of this type are text."""
    return bool(
        JSON_TYPES.match(media)
        or media in NDJSON_TYPES
        or media == FORM_TYPE
        or _TEXT_TYPES.match(media)
    )


def is_recordable(content_type: str) -> bool:
    """Whether a body of this type could be recorded as text; a missing type may be."""
    media, _ = media_and_charset(content_type)
    return not media or is_textual(media)


def media_label(content_type: str) -> str:
    """Return the media type to show: one that is well-formed and looks like one that exists."""
    return _media_label(content_type[:_LONGEST])


@lru_cache(maxsize=256)
def _media_label(content_type: str) -> str:
    media = content_type.partition(";")[0].strip().lower()
    if not media:
        return "no content type"
    known = len(media) <= 60 and (media in _REGISTERED or _LOOKS_KNOWN.fullmatch(media))
    return media if known else UNKNOWN_TYPE


def summary(state: str, media: str, size: int) -> Body:
    reason = {
        "omitted_size": "too large",
        "omitted_binary": "not text",
        "omitted_parse": "could not be parsed",
    }[state]
    return Body(f"[{reason}: {media_label(media)}, {size} bytes]", state)


#: Members of one gzip body: each costs a decompressor, however little it holds.
_MAX_MEMBERS = 2000
_PIECE = 16 << 10


def inflate(raw: bytes, encoding: str, limit: int) -> bytes | None:
    """Return the decompressed bytes, or None when they pass `limit`.

    :raises zlib.error: not that encoding, or cut short.
    """
    if encoding in ("gzip", "x-gzip"):
        wbits = 31
    elif encoding == "deflate":
        # Sent with or without the zlib wrapper; the first byte tells.
        wbits = 15 if raw[:1] == b"\x78" else -15
    else:
        raise zlib.error(f"{encoding} is not understood")
    inflater = zlib.decompressobj(wbits)
    inflated = bytearray()
    position, members = 0, 1
    while position < len(raw):
        if inflater.eof:
            # Who compresses a stream chunk by chunk, as Django does, sends a gzip member for each.
            if wbits != 31 or members == _MAX_MEMBERS:
                raise zlib.error("followed by something else, or in too many members")
            inflater = zlib.decompressobj(wbits)
            members += 1
        # By pieces: what follows a member's end is copied each time.
        piece = raw[position : position + _PIECE]
        inflated += inflater.decompress(piece, limit + 1 - len(inflated))
        if len(inflated) > limit:
            return None
        position += len(piece) - len(inflater.unused_data)
    if not inflater.eof:
        raise zlib.error("cut short")
    return bytes(inflated)
