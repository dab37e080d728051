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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode

MASK = "[REDACTED]"

#: Nesting and size of JSON that is still looked through; beyond it the body is left out.
MAX_DEPTH = 64
MAX_NODES = 200_000

# Matched anywhere in a key once it is lower-cased and stripped of all but letters and digits.
_SENSITIVE_PARTS = (
    "password", "passwd", "passphrase", "passcode", "secret", "token", "apikey", "accesskey",
    "privatekey", "signingkey", "authorization", "authsignature", "authentication", "credential",
    "cookie", "session", "cardnumber", "creditcard", "debitcard", "securitycode", "accountnumber",
    "routingnumber", "socialsecurity", "taxid", "passport", "driverslicense", "bearer", "csrf",
    "xsrf",
)  # fmt: skip
# Matched as whole words of a key: inside others they are chance (busineSS Name, foOTPrint).
_SENSITIVE_WORDS = frozenset(
    ("auth", "card", "cvc", "cvv", "iban", "jwt", "otp", "pan", "pin", "pwd", "sid", "sig",
     "signature", "ssn")
)  # fmt: skip
# Contain a part, and are no secret.
_HARMLESS = frozenset(("tokentype", "sessioncount"))

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_NON_ALNUM = re.compile(r"[^a-z0-9]+")
_JWT = r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"
_PEM = r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)"
_BEARER = r"\b(?:bearer|basic|digest)\s+[A-Za-z0-9._~+/=-]{6,}"
_PATTERNS = re.compile(f"{_JWT}|{_PEM}|(?i:{_BEARER})", re.DOTALL)
_CARD = re.compile(r"(?<![\dA-Za-z])(?:\d[ -]?){12,18}\d(?!\d)")
_ASSIGNMENT = re.compile(
    r"""(?ix) ( [\w.-]* (?: password | passwd | secret | token | api[_-]?key | authorization )
        [\w.-]* ["']? \s* [=:>] \s* ["']? ) ( [^\s"'<>&,;]+ )"""
)
# Cheap test before the patterns: nearly all strings have none of these.
_HINT = re.compile(r"(?i)eyj|-----begin|bearer|basic|digest|\d[ -]?(?:\d[ -]?){11}")

JSON_TYPES = re.compile(r"^application/(?:[\w.+-]+\+)?json$|^text/json$", re.IGNORECASE)
NDJSON_TYPES = frozenset(
    {"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq"}
)
FORM_TYPE = "application/x-www-form-urlencoded"
_TEXT_TYPES = re.compile(
    r"^text/|^application/(?:[\w.+-]+\+)?xml$|^application/(?:x-)?javascript$|^application/graphql$"
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


@lru_cache(maxsize=4096)
def _sensitive(key: str, extra: frozenset[str]) -> bool:
    plain = normalise_key(key)
    if plain in _HARMLESS:
        return False
    return (
        plain in extra
        or any(part in plain for part in _SENSITIVE_PARTS)
        or any(word.lower() in _SENSITIVE_WORDS for word in _WORDS.findall(key))
    )


def normalise_key(key: str) -> str:
    """Return `key` in lower case with letters and digits alone: Card-Number → cardnumber."""
    return _NON_ALNUM.sub("", key.casefold())


def _luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit)
        if index % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _is_card(digits: str) -> bool:
    """Whether `digits` has the prefix and length of a card scheme and a right check digit.

    The prefixes keep item, order and site numbers, a tenth of which pass Luhn, out of it.
    """
    length = len(digits)
    two = digits[:2]
    scheme = (
        (digits[0] == "4" and length in (13, 16, 19))
        or ("51" <= two <= "55" and length == 16)
        or ("2221" <= digits[:4] <= "2720" and length == 16)
        or (two in ("34", "37") and length == 15)
        or (two in ("30", "36", "38", "39") and length == 14)
        or (two in ("35", "60", "62", "64", "65", "50", "67", "81") and 16 <= length <= 19)
    )
    return scheme and _luhn(digits)


def _mask_card(match: re.Match[str]) -> str:
    text = match.group()
    digits = re.sub(r"\D", "", text)
    return MASK if _is_card(digits) else text


class Redactor:
    """Takes secrets out of everything an event holds.

    :param extra_keys: further names whose values are redacted, in any spelling.
    :param max_body_bytes: bound on a body, also after decompression.
    """

    def __init__(self, extra_keys: Iterable[str] = (), max_body_bytes: int = 512 * 1024) -> None:
        self._extra = frozenset(normalise_key(key) for key in extra_keys)
        self._max_body_bytes = max_body_bytes

    def text(self, value: str) -> str:
        """Return `value` without tokens, keys and card numbers."""
        if _HINT.search(value) is None:
            return value
        return _CARD.sub(_mask_card, _PATTERNS.sub(MASK, value))

    def free_text(self, value: str) -> str:
        """As :meth:`text`, for prose and markup: also ``password=…``, ``token: …``."""
        return self.text(_ASSIGNMENT.sub(lambda match: match.group(1) + MASK, value))

    def is_sensitive(self, key: str) -> bool:
        """Whether a value under `key` is redacted whatever it is."""
        return _sensitive(key[:200], self._extra)

    def query(self, query: str) -> str:
        """Return a query string with the values of sensitive parameters masked."""
        if not query:
            return query
        pairs, changed = self._pairs(query)
        return urlencode(pairs, safe="[]/:,@") if changed else query

    def path(self, path: str) -> str:
        """Return a path with tokens and card numbers masked."""
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
            return Body("", "full")
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
            text = raw.decode(charset)
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
            return self._lines(text, media, size, truncated)
        if truncated:
            if not media.startswith("text/"):
                return _summary("omitted_size", media, size)
            # A secret cut in two would pass the patterns: go back to the last line's end.
            text = text[: text.rfind("\n") + 1]
            return Body(self.free_text(text), "truncated")
        if media == FORM_TYPE:
            pairs, changed = self._pairs(text)
            return Body(urlencode(pairs), "redacted") if changed else Body(text, "full")
        is_json = bool(JSON_TYPES.match(media))
        if is_json or text.lstrip()[:1] in ("{", "["):
            redacted = self._json(text)
            if redacted is not None:
                return Body(redacted, "full" if redacted is text else "redacted")
            if is_json:
                return _summary("omitted_parse", media, size)
        elif not media:
            return _summary("omitted_binary", media, size)
        redacted = self.free_text(text)
        return Body(redacted, "full" if redacted == text else "redacted")

    def _lines(self, text: str, media: str, size: int, truncated: bool) -> Body:
        lines, state = [], "full"
        if truncated:
            text = text[: text.rfind("\n") + 1]
        for line in text.splitlines():
            redacted = self._json(line) if line.strip() else line
            if redacted is None:
                return _summary("omitted_parse", media, size)
            if redacted is not line:
                state = "redacted"
            lines.append(redacted)
        if state == "redacted":
            text = "\n".join(lines) + "\n"
        return Body(text, "truncated" if truncated else state)

    def _pairs(self, text: str) -> tuple[list[tuple[str, str]], bool]:
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=10_000)
        except ValueError:
            return [("omitted", "unparsable")], True
        budget = [MAX_NODES]
        try:
            redacted = [
                (
                    self.text(key),
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
            document, repeated = _parse(text)
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
            changed = False
            new: dict[str, Any] = {}
            for key, item in value.items():
                kept = key if len(key) < 5 else self.text(key)
                if self.is_sensitive(key):
                    # An empty value tells nothing, and tells the reader that it was empty.
                    redacted = item if item in (None, "") else MASK
                else:
                    redacted = self._walk(item, depth - 1, budget)
                changed = changed or redacted is not item or kept is not key
                new[kept] = redacted
            return new if changed else value
        if isinstance(value, list):
            items = [self._walk(item, depth - 1, budget) for item in value]
            same = all(new is old for new, old in zip(items, value, strict=True))
            return value if same else items
        if isinstance(value, int) and not isinstance(value, bool) and value > 10**11:
            return MASK if _is_card(str(value)) else value
        return value

    def _string(self, value: str, depth: int, budget: list[int]) -> str:
        if len(value) < 5:
            return value
        stripped = value.lstrip()
        if stripped[:1] in ("{", "[") and depth > 0:
            try:
                document, repeated = _parse(stripped)
                redacted = self._walk(document, depth - 1, budget)
            except (ValueError, RecursionError):
                # Not JSON after all: a string like any other, but one that may hold broken JSON.
                return _keep(value, self.free_text(value))
            if redacted is not document or repeated:
                return json.dumps(redacted, ensure_ascii=False)
            return value
        return _keep(value, self.text(value))


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
    if not inflater.eof:
        raise zlib.error("cut short")
    return inflated
