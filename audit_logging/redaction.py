"""Redaction: secrets are taken out before anything leaves the process; what is unclear is left out.

Runs on the background thread. Bodies go through :meth:`Redactor.body`, which decodes, parses and
returns text with its *state*; query strings, header values and error texts have methods of their
own. Whatever cannot be parsed as what it says it is, is never kept raw.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .cards import is_card
from .content import (
    FORM_TYPE,
    JSON_TYPES,
    NDJSON_TYPES,
    Body,
    decode_text,
    inflate,
    is_textual,
    media_and_charset,
    summary,
)
from .content import is_recordable as is_recordable
from .masking import mask_path, mask_text
from .sensitive import MASK, SAYS_NOTHING, normalise_key, sensitive_key

#: Nesting and size of JSON that is still looked through; beyond it the body is left out.
MAX_DEPTH = 64
MAX_NODES = 200_000

# Text that can only be meant as JSON: when it does not parse, nobody knows what it holds.
_BROKEN_JSON = re.compile(r"""\{\s*["'{}\[]|\[\s*["'{\[]""")
_EVENT_STREAM_LINE = re.compile(r"\s*+(?:data:[\s\ufeff]*+)?")
_BLANK = "\ufeff \t\r\n"
# {"name": "password", "value": …}, in any case.
_NAME_KEYS = frozenset(
    ("name", "key", "k", "field", "header", "param", "parameter", "property", "id", "label", "type")
)
_VALUE_KEYS = frozenset(("value", "values", "val", "v", "content"))
# What an object called "card" tells without the card.
_OF_A_CARD = frozenset(("type", "brand", "scheme", "network", "last4", "count"))


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
        """Return any text without credentials, card numbers, and what stands beside a telling
        name: ``password: …``, ``token=…``, ``<secret>…</secret>``."""
        return mask_text(value, self.is_sensitive)

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
            if value in (None, "") or isinstance(value, bool) or not self.is_sensitive(name):
                continue
            parts = path.split("/")
            masked = [MASK if _is_written(part, value) else part for part in parts]
            if masked != parts:
                path = "/".join(masked)
            elif len(text := str(value)) > 2 and text in path:
                path = path.replace(text, MASK)
            elif not isinstance(value, str):
                # A converter made something else of it: nobody knows where it stands.
                path = f"/{MASK}"
        return mask_path(path, self.is_sensitive)

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
        media, charset = media_and_charset(content_type)
        if len(raw) > self._max_body_bytes:
            return summary("omitted_size", media, len(raw))
        if encoding and encoding.lower() != "identity":
            if truncated:
                return summary("omitted_size", media, len(raw))
            try:
                inflated = inflate(raw, encoding.lower(), self._max_body_bytes)
            except zlib.error:
                return summary("omitted_parse", media, len(raw))
            if inflated is None:
                return summary("omitted_size", media, len(raw))
            raw = inflated
        if media and not is_textual(media):
            return summary("omitted_binary", media, len(raw))
        try:
            text = decode_text(raw, charset)
        except (LookupError, ValueError):
            if not truncated:
                state = "omitted_parse" if media else "omitted_binary"
                return summary(state, media, len(raw))
            text = raw.decode("utf-8", "ignore")
        if "\x00" in text:
            return summary("omitted_binary", media, len(raw))
        return self._decoded(text, media, len(raw), truncated)

    def _decoded(self, text: str, media: str, size: int, truncated: bool) -> Body:
        if media in NDJSON_TYPES:
            lines = self._lines(text[: text.rfind("\n") + 1] if truncated else text)
            if lines is None:
                return summary("omitted_parse", media, size)
            return Body(lines, "truncated") if truncated else _compared(text, lines)
        start = text.lstrip(_BLANK)[:1]
        if truncated:
            if not media.startswith("text/") or start in ("{", "["):
                return summary("omitted_size", media, size)
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
                return summary("omitted_parse", media, size)
        if media == FORM_TYPE:
            pairs, changed = self._pairs(text)
            return Body(urlencode(pairs, safe="[]"), "redacted") if changed else Body(text, "full")
        if not media:
            return summary("omitted_binary", media, size)
        return _compared(text, self._plain(text))

    def _plain(self, text: str) -> str:
        """Return prose, markup or an event stream without secrets."""
        if "{" in text or "[" in text:
            text = "\n".join(self._plain_line(line) for line in text.split("\n"))
        return self.text(text)

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
        # name=password&value=…
        named = any(key.lower() in _NAME_KEYS and self.is_sensitive(value) for key, value in pairs)
        try:
            redacted = [
                (
                    self._string(key, MAX_DEPTH, budget),
                    MASK
                    if self._is_secret(key, value, named)
                    else self._string(value, MAX_DEPTH, budget),
                )
                for key, value in pairs
            ]
        except _TooComplex:
            return [("omitted", "too complex")], True
        return redacted, redacted != pairs

    def _is_secret(self, key: str, value: str, named: bool) -> bool:
        if self.is_sensitive(key):
            return value.lower() not in SAYS_NOTHING
        return named and key.lower() in _VALUE_KEYS

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
            items = [self._walk(self._pair(item), depth - 1, budget) for item in value]
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
                redacted = self._hidden(key, item)
            else:
                redacted = self._walk(item, depth - 1, budget)
            changed = changed or redacted is not item or kept is not key
            new[kept] = redacted
        return new if changed else value

    @staticmethod
    def _hidden(key: str, item: Any) -> Any:
        """Return what is shown in place of `item`, which is a secret by its name."""
        if item is None or isinstance(item, bool):
            return item
        if isinstance(item, str) and item.lower() in SAYS_NOTHING:
            # An empty value tells nothing, and tells the reader that it was empty.
            return item
        if isinstance(item, dict) and normalise_key(key) == "card":
            return {
                name: value
                if name in _OF_A_CARD and isinstance(value, (str, int)) and len(str(value)) <= 12
                else MASK
                for name, value in item.items()
            }
        return MASK

    def _named_value(self, value: dict[str, Any]) -> str | None:
        """The key of the value in ``{"name": "password", "value": …}``, if it is a secret."""
        values = [key for key in value if len(key) < 8 and key.lower() in _VALUE_KEYS]
        if not values:
            return None
        for key, name in value.items():
            if len(key) > 9 or key.lower() not in _NAME_KEYS or not isinstance(name, str):
                continue
            if self.is_sensitive(name):
                # Cookies are sold, too.
                sold = normalise_key(name) in ("cookie", "cookies")
                number = isinstance(value[values[0]], (int, float))
                return None if sold and number else values[0]
        return None

    def _pair(self, item: Any) -> Any:
        """Return ``["password", …]`` in a list of pairs without its value."""
        if isinstance(item, list) and len(item) == 2 and isinstance(item[0], str):
            name, value = item
            if self.is_sensitive(name) and not isinstance(value, (dict, list)):
                hidden = self._hidden(name, value)
                return item if hidden is value else [name, hidden]
        return item

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
            return _keep(value, self.text(value))
        if redacted is not document or repeated:
            return json.dumps(redacted, ensure_ascii=False)
        return value


def _is_written(part: str, value: Any) -> bool:
    """Whether a part of a path is what a route took `value` from."""
    if part == str(value):
        return True
    return isinstance(value, int) and part.isdecimal() and part.lstrip("0") == str(value)


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
