"""Redaction: secrets are taken out before anything leaves the process; what is unclear is left out.

Runs on the background thread. Bodies go through :meth:`Redactor.body`, which decodes, parses and
returns text with its *state*; query strings, header values and error texts have methods of their
own. Whatever cannot be parsed as what it says it is, is never kept raw.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .sensitive import (
    MASK,
    is_card,
    mask_inline,
    mask_markup,
    mask_patterns,
    mask_prose,
    normalise_key,
    sensitive_key,
)

#: Nesting and size of JSON that is still looked through; beyond it the body is left out.
MAX_DEPTH = 64
MAX_NODES = 200_000

JSON_TYPES = re.compile(r"^application/(?:[\w.+-]+\+)?json$|^text/json$", re.IGNORECASE)
NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq"}
)
FORM_TYPE = "application/x-www-form-urlencoded"
_TEXT_TYPES = re.compile(
    r"^text/|^application/(?:[\w.+-]+\+)?xml$|^application/(?:x-)?javascript$|^application/graphql$"
)


# Text that can only be meant as JSON: when it does not parse, nobody knows what it holds.
_BROKEN_JSON = re.compile(r"""\{\s*["'{}\[]|\[\s*["'{\[]""")
_EVENT_STREAM_LINE = re.compile(r"\s*+(?:data:[\s\ufeff]*+)?")
_BLANK = "\ufeff \t\r\n"
_NAME_AND_VALUE = tuple(
    (name, value)
    for value in ("value", "Value")
    for name in ("name", "Name", "key", "Key", "field", "header", "param", "parameter")
)
# Python decodes some more, in time that grows with the square of the length (punycode, idna).
_CHARSETS = re.compile(
    r"^(?:utf-?(?:8|16|32).*|ascii|iso-?8859.*|latin.*|cp\d+|windows.*|koi8.*|mac.*|big5.*|gb.*"
    r"|hz|euc.*|shift.*|iso2022.*|johab|tis-620|ptcp154)$"
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


class _TooComplex(Exception):
    """Deeper or larger than is looked through."""


class Redactor:
    """Takes secrets out of everything an event holds.

    :param extra_keys: further names whose values are redacted, in any spelling.
    :param max_body_bytes: bound on a body, also after decompression.
    """

    def __init__(self, extra_keys: Iterable[str] = (), max_body_bytes: int = 512 * 1024) -> None:
        self._extra = frozenset(normalise_key(key) for key in extra_keys)
        self._max_body_bytes = max_body_bytes

    def text(self, value: str) -> str:
        """Return `value` without tokens, card numbers, and values of ``secret=…``."""
        return mask_patterns(mask_inline(value, self.is_sensitive))

    def free_text(self, value: str) -> str:
        """As :meth:`text`, for prose and markup: also ``password: …``, ``<token>…</token>``."""
        if "<" in value:
            value = mask_markup(value, self.is_sensitive)
        return mask_patterns(mask_prose(value, self.is_sensitive))

    def is_sensitive(self, key: str) -> bool:
        """Whether a value under `key` is redacted whatever it is."""
        return sensitive_key(key, self._extra)

    def query(self, query: str) -> str:
        """Return a query string with the values of sensitive parameters masked."""
        if not query:
            return query
        pairs, changed = self._pairs(query)
        return urlencode(pairs, safe="[]/:,@") if changed else query

    def path(self, path: str, kwargs: dict[str, Any] | None = None) -> str:
        """Return a path with tokens and card numbers masked.

        :param kwargs: what the route took from the path; ``reset/<token>`` names a secret.
        """
        for name, value in (kwargs or {}).items():
            if isinstance(value, str) and len(value) > 2 and self.is_sensitive(name):
                path = path.replace(value, MASK)
        return self.text(path)

    def body(
        self, raw: bytes, content_type: str, encoding: str = "", *, truncated: bool = False
    ) -> Body:
        """Return what may be recorded of a body.

        :param raw: the bytes as they went over the wire.
        :param content_type: the Content-Type header, or "".
        :param encoding: the Content-Encoding header, or "".
        :param truncated: whether `raw` is only the beginning.
        """
        if not raw:
            return Body("", "truncated" if truncated else "full")
        media, charset = _media_type(content_type)
        if len(raw) > self._max_body_bytes:
            return _summary("omitted_size", media, len(raw))
        if encoding and encoding.lower() != "identity":
            if truncated:
                return _summary("omitted_size", media, len(raw))
            try:
                inflated = _inflate(raw, encoding.lower(), self._max_body_bytes)
            except zlib.error:
                return _summary("omitted_parse", media, len(raw))
            if inflated is None:
                return _summary("omitted_size", media, len(raw))
            raw = inflated
        if media and not _is_textual(media):
            return _summary("omitted_binary", media, len(raw))
        try:
            text = _decode(raw, charset)
        except (LookupError, ValueError):
            if not truncated:
                state = "omitted_parse" if media else "omitted_binary"
                return _summary(state, media, len(raw))
            text = raw.decode("utf-8", "ignore")
        if "\x00" in text:
            return _summary("omitted_binary", media, len(raw))
        return self._decoded(text, media, len(raw), truncated)

    def _decoded(self, text: str, media: str, size: int, truncated: bool) -> Body:
        if media in NDJSON_TYPES:
            lines = self._lines(text[: text.rfind("\n") + 1] if truncated else text)
            if lines is None:
                return _summary("omitted_parse", media, size)
            return Body(lines, "truncated") if truncated else _compared(text, lines)
        start = text.lstrip(_BLANK)[:1]
        if truncated:
            if not media.startswith("text/") or start in ("{", "["):
                return _summary("omitted_size", media, size)
            # A secret cut in two would pass the patterns: go back to the last line's end.
            return Body(self._plain(text[: text.rfind("\n") + 1]), "truncated")
        is_json = bool(JSON_TYPES.match(media))
        if is_json or start in ("{", "["):
            # Also where the type says otherwise: many clients do not bother to give one.
            redacted = self._json(text)
            if redacted is None and not is_json:
                redacted = self._lines(text)
            if redacted is not None:
                return _compared(text, redacted)
            if is_json or not media or _BROKEN_JSON.match(text.lstrip(_BLANK)):
                return _summary("omitted_parse", media, size)
        if media == FORM_TYPE:
            pairs, changed = self._pairs(text)
            return Body(urlencode(pairs, safe="[]"), "redacted") if changed else Body(text, "full")
        if not media:
            return _summary("omitted_binary", media, size)
        return _compared(text, self._plain(text))

    def _plain(self, text: str) -> str:
        """Return prose, markup or an event stream without secrets."""
        if "{" in text or "[" in text:
            text = "\n".join(self._plain_line(line) for line in text.split("\n"))
        return self.free_text(text)

    def _plain_line(self, line: str) -> str:
        """Return a line that holds JSON (a log's, a server-sent event's) redacted as that."""
        prefix = _EVENT_STREAM_LINE.match(line)
        start = prefix.end() if prefix else 0
        if line[start : start + 1] not in ("{", "["):
            return line
        document = line[start:]
        redacted = self._json(document)
        return line if redacted is None or redacted is document else line[:start] + redacted

    def _lines(self, text: str) -> str | None:
        """Return lines of JSON redacted, `text` itself if there is nothing, None if unparsable."""
        lines, changed = [], False
        # JSON may hold other line ends than this one.
        for line in text.split("\n"):
            document = line.strip("\x1e\r \t")
            redacted = self._json(document) if document else document
            if redacted is None:
                return None
            changed = changed or redacted is not document
            lines.append(line if redacted is document else redacted)
        return "\n".join(lines) if changed else text

    def _pairs(self, text: str) -> tuple[list[tuple[str, str]], bool]:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=10_000)
        except ValueError:
            return [("omitted", "unparsable")], True
        budget = [MAX_NODES]
        try:
            redacted = [
                (
                    self._string(key, MAX_DEPTH, budget),
                    MASK if self.is_sensitive(key) else self._string(value, MAX_DEPTH, budget),
                )
                for key, value in pairs
            ]
        except _TooComplex:
            return [("omitted", "too complex")], True
        return redacted, redacted != pairs

    def _json(self, text: str) -> str | None:
        """Return `text` itself when there is nothing to redact, a new text, or None if it is not
        JSON that can be looked through."""
        try:
            document, repeated = _parse(text.lstrip("\ufeff"))
            redacted = self._walk(document, MAX_DEPTH, [MAX_NODES])
        except (ValueError, RecursionError, _TooComplex):
            return None
        # A key given twice lost its first value when parsed: nobody has looked at that one.
        if redacted is document and not repeated:
            return text
        return json.dumps(redacted, ensure_ascii=False)

    def _walk(self, value: Any, depth: int, budget: list[int]) -> Any:
        """Return `value` itself when nothing in it is redacted, else a redacted copy."""
        budget[0] -= 1
        if depth < 0 or budget[0] < 0:
            raise _TooComplex
        if isinstance(value, str):
            return self._string(value, depth, budget)
        if isinstance(value, dict):
            return self._object(value, depth, budget)
        if isinstance(value, list):
            items = [self._walk(item, depth - 1, budget) for item in value]
            same = all(new is old for new, old in zip(items, value, strict=True))
            return value if same else items
        if isinstance(value, (int, float)) and 10**11 < abs(value) < 10**19:
            return MASK if value == int(value) and is_card(str(abs(int(value)))) else value
        return value

    def _object(self, value: dict[str, Any], depth: int, budget: list[int]) -> dict[str, Any]:
        changed = False
        new: dict[str, Any] = {}
        hidden = self._named_value(value)
        for key, item in value.items():
            kept = key if len(key) < 5 else self._string(key, depth - 1, budget)
            if key == hidden or self.is_sensitive(key):
                # An empty value tells nothing, and tells the reader that it was empty.
                redacted = item if item in (None, "") else MASK
            else:
                redacted = self._walk(item, depth - 1, budget)
            changed = changed or redacted is not item or kept is not key
            new[kept] = redacted
        return new if changed else value

    def _named_value(self, value: dict[str, Any]) -> str | None:
        """The key of the value in ``{"name": "password", "value": …}``, if it is a secret."""
        for name_key, value_key in _NAME_AND_VALUE:
            name = value.get(name_key)
            if isinstance(name, str) and value_key in value and self.is_sensitive(name):
                return value_key
        return None

    def _string(self, value: str, depth: int, budget: list[int]) -> str:
        if len(value) < 5:
            return value
        stripped = value.lstrip(_BLANK)
        if stripped[:1] not in ("{", "[", '"'):
            return _keep(value, self.text(value))
        if depth <= 0:
            raise _TooComplex
        try:
            document, repeated = _parse(stripped)
            redacted = self._walk(document, depth - 1, budget)
        except RecursionError:
            raise _TooComplex from None
        except ValueError:
            # Not JSON after all: a string like any other, but one that may hold broken JSON.
            return _keep(value, self.free_text(value))
        if redacted is not document or repeated:
            return json.dumps(redacted, ensure_ascii=False)
        return value


def _compared(text: str, redacted: str) -> Body:
    return Body(redacted, "full" if redacted == text else "redacted")


def _keep(old: str, new: str) -> str:
    """Return `old` when equal, so that identity tells whether something changed."""
    return old if old == new else new


def _parse(text: str) -> tuple[Any, bool]:
    """Return the JSON document in `text`, and whether some object gives a key twice.

    :raises ValueError: not JSON, or a number of absurd length.
    :raises RecursionError: nested too deep for the parser.
    """
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        built = dict(items)
        repeated = repeated or len(built) != len(items)
        return built

    return json.loads(text, object_pairs_hook=pairs, parse_constant=str), repeated


def _decode(raw: bytes, charset: str) -> str:
    """Return `raw` as text.

    :raises LookupError: an unknown charset, or one whose decoder takes hostile input badly.
    :raises ValueError: `raw` is not in that charset.
    """
    if not _CHARSETS.match(codecs.lookup(charset).name):
        raise LookupError(charset)
    return raw.decode(charset)


def _media_type(content_type: str) -> tuple[str, str]:
    media, _, parameters = content_type.partition(";")
    charset = "utf-8"
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip():
            charset = value.strip().strip('"')[:40]
    return media.strip().lower(), charset


def _is_textual(media: str) -> bool:
    return bool(
        JSON_TYPES.match(media)
        or media in NDJSON_TYPES
        or media == FORM_TYPE
        or _TEXT_TYPES.match(media)
    )


def is_recordable(content_type: str) -> bool:
    """Whether a body of this type could be recorded as text; a missing type may be."""
    media, _ = _media_type(content_type)
    return not media or _is_textual(media)


def _summary(state: str, media: str, size: int) -> Body:
    reason = {
        "omitted_size": "too large",
        "omitted_binary": "not text",
        "omitted_parse": "could not be parsed",
    }[state]
    return Body(f"[{reason}: {media[:100] or 'no content type'}, {size} bytes]", state)


def _inflate(raw: bytes, encoding: str, limit: int) -> bytes | None:
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
    inflated = inflater.decompress(raw, limit + 1)
    if len(inflated) > limit:
        return None
    if not inflater.eof or inflater.unused_data:
        raise zlib.error("cut short, or followed by something else")
    return inflated
