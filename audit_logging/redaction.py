"""Redaction: secrets are taken out before anything leaves the process; what is unclear is left out.

Runs on the background thread. Bodies go through :meth:`Redactor.body`, which decodes, parses and
returns text with its *state*; query strings, header values and error texts have methods of their
own. Whatever cannot be parsed as what it says it is, is never kept raw.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .beside import hidden_in_form
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
from .documents import BLANK, MAX_DEPTH, Documents, Task, TooComplex
from .masking import mask_path, mask_text
from .names import names_of
from .quiet import is_quiet_query
from .sensitive import MASK, SAYS_NOTHING
from .tables import mask_table

# Text that can only be meant as JSON: when it does not parse, nobody knows what it holds.
_BROKEN_JSON = re.compile(r"""\{\s*["'{}\[]|\[\s*["'{\[]""")
_EVENT_STREAM_LINE = re.compile(r"\s*+(?:data:[\s\ufeff]*+)?")
_TABLE_TYPES = frozenset(("text/csv", "text/tab-separated-values"))
_MOST_FIELDS = 10_000


class Redactor:
    """Takes secrets out of everything an event holds.

    :param extra_keys: further names whose values are redacted, in any spelling.
    :param max_body_bytes: bound on a body, also after decompression.
    :param breathe: called again and again during long work, at points where it could pause.
    """

    def __init__(
        self,
        extra_keys: Iterable[str] = (),
        max_body_bytes: int = 512 * 1024,
        breathe: Callable[[], None] = lambda: None,
    ) -> None:
        self._names = names_of(tuple(extra_keys))
        self._max_body_bytes = max_body_bytes
        self._breathe = breathe
        self._documents = Documents(self._names, self.text, breathe)
        self.is_sensitive = self._names.is_sensitive

    def text(self, value: str) -> str:
        """Return any text without credentials, card numbers, and what stands beside a telling
        name: ``password: …``, ``token=…``, ``<secret>…</secret>``."""
        return mask_text(value, self._names, self._breathe)

    def header(self, value: str) -> str:
        """Return a header's value as :meth:`text` does; one seen before is not looked at again."""
        if value in self._names.quiet:
            return value
        text = self.text(value)
        if text == value:
            self._names.remember_quiet(value)
        return text

    def query(self, query: str) -> str:
        """Return a query string with the values of sensitive parameters masked."""
        if not query or is_quiet_query(query, self._names):
            return query
        pairs, changed = self._pairs(query)
        return self._written(pairs, "[]/:,@") if changed else query

    def path(self, path: str, kwargs: Mapping[str, Any] | None = None) -> str:
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
        return mask_path(path, self._names)

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
            text = raw.decode() if charset == "utf-8" else decode_text(raw, charset)
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
        start = text.lstrip(BLANK)[:1]
        if truncated:
            if not media.startswith("text/") or start in ("{", "["):
                return summary("omitted_size", media, size)
            # A secret cut in two would pass the patterns: go back to the last line's end.
            return Body(self._plain(text[: text.rfind("\n") + 1]), "truncated")
        is_json = bool(JSON_TYPES.match(media))
        if is_json or start in ("{", "["):
            # Also where the type says otherwise: many clients do not bother to give one.
            redacted = self._documents.redact(text)
            if redacted is None and not is_json:
                redacted = self._lines(text)
            if redacted is not None:
                return _compared(text, redacted)
            if is_json or not media or _BROKEN_JSON.match(text.lstrip(BLANK)):
                return summary("omitted_parse", media, size)
        if media == FORM_TYPE:
            pairs, changed = self._pairs(text)
            return (
                Body(urlencode(pairs, safe="[]", errors="replace"), "redacted")
                if changed
                else Body(text, "full")
            )
        if not media:
            return summary("omitted_binary", media, size)
        plain = text
        if media in _TABLE_TYPES:
            plain = mask_table(text, self.is_sensitive, self._breathe, sure=True)
        return _compared(text, self._plain(plain))

    def _plain(self, text: str) -> str:
        """Return prose, markup or an event stream without secrets."""
        if "{" in text or "[" in text:
            lines = text.split("\n")
            for number, line in enumerate(lines):
                if number % 50 == 0:
                    self._breathe()
                if "{" in line or "[" in line:
                    lines[number] = self._plain_line(line)
            text = "\n".join(lines)
        return self.text(text)

    def _plain_line(self, line: str) -> str:
        """Return a line that holds JSON (a log's, a server-sent event's) redacted as that."""
        prefix = _EVENT_STREAM_LINE.match(line)
        start = prefix.end() if prefix else 0
        if line[start : start + 1] not in ("{", "["):
            return line
        document = line[start:]
        redacted = self._documents.redact(document)
        return line if redacted is None or redacted is document else line[:start] + redacted

    def _lines(self, text: str) -> str | None:
        """Return lines of JSON redacted, `text` itself if there is nothing, None if unparsable."""
        lines, changed = [], False
        # JSON may hold other line ends than this one.
        for line in text.split("\n"):
            document = line.strip("\x1e\r \t")
            redacted = self._documents.redact(document) if document else document
            if redacted is None:
                return None
            changed = changed or redacted is not document
            lines.append(line if redacted is document else redacted)
        return "\n".join(lines) if changed else text

    def _pairs(self, text: str) -> tuple[list[tuple[str, str]], bool]:
        fields = text.split("&")
        if len(fields) > _MOST_FIELDS:
            return [("omitted", "unparsable")], True
        pairs = []
        for start in range(0, len(fields), 50):
            pairs += parse_qsl("&".join(fields[start : start + 50]), keep_blank_values=True)
            self._breathe()
        task = Task()
        told = hidden_in_form(pairs, self.is_sensitive)
        redacted = []
        try:
            for number, (key, value) in enumerate(pairs):
                if number % 50 == 0:
                    self._breathe()
                shown = MASK
                if not self._is_secret(key, value, told):
                    shown = self._documents.string(value, MAX_DEPTH, task)
                redacted.append((self._documents.string(key, MAX_DEPTH, task), shown))
        except TooComplex:
            return [("omitted", "too complex")], True
        return redacted, redacted != pairs

    def _written(self, pairs: list[tuple[str, str]], safe: str) -> str:
        written = []
        for start in range(0, len(pairs), 50):
            written.append(urlencode(pairs[start : start + 50], safe=safe, errors="replace"))
            self._breathe()
        return "&".join(written)

    def _is_secret(self, key: str, value: str, told: Collection[str]) -> bool:
        return (self.is_sensitive(key) or key in told) and value.lower() not in SAYS_NOTHING


def _is_written(part: str, value: Any) -> bool:
    """Whether a part of a path is what a route took `value` from."""
    if part == str(value):
        return True
    return isinstance(value, int) and part.isdecimal() and part.lstrip("0") == str(value)


def _compared(text: str, redacted: str) -> Body:
    return Body(redacted, "full" if redacted == text else "redacted")
