"""Structured header fields (RFC 8941), as far as signatures need them, in bounded time.

Dictionaries whose members are inner lists of strings (Signature-Input) or byte sequences
(Signature, Content-Digest). What else the standard knows is refused, never guessed at. Every
pattern has one way to match, so that the time grows with the length alone, which is bounded.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from functools import lru_cache

#: Longest field that is looked at, in characters; servers let through twice that.
MAX_LENGTH = 6000
#: Most members of a dictionary, items of a list, or parameters of one thing.
MAX_PARTS = 32

_BLANKS = re.compile(r"[ \t]*")
_SPACES = re.compile(r" *")
_KEY = re.compile(r"[a-z*][a-z0-9_.*-]{0,63}")
_STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_INTEGER = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_BOOLEAN = re.compile(r"\?[01]")
_TOKEN = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")
_ESCAPED = re.compile(r"\\(.)")
#: What nearly all senders send: each is a shorter way to the same answer.
_ONE_SEQUENCE = re.compile(r"([a-z*][a-z0-9_.*-]{0,63})=:([A-Za-z0-9+/=]*):")
_PLAIN_NAME = r'"[\x20\x21\x23-\x5b\x5d-\x7e]*"'
_PLAIN_LIST = re.compile(rf"(?:{_PLAIN_NAME}(?: {_PLAIN_NAME})*)?\)")

Value = str | int | bytes | bool


class Malformed(ValueError):
    """The text is no such field; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class InnerList:
    """Strings with their parameters, and the list's own.

    :ivar items: each string, with its parameters as they are written in a signature base.
    :ivar params: the list's parameters.
    :ivar text: the whole as RFC 8941 serializes it, whatever blanks it came with.
    """

    items: tuple[tuple[str, str], ...]
    params: dict[str, Value]
    text: str


class _Reader:
    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise Malformed(f"it has {len(text):,} characters; {MAX_LENGTH:,} are looked at")
        self.text = text.strip(" ")
        self.at = 0

    def skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        if self.peek() != character:
            return False
        self.at += 1
        return True

    def want(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise Malformed(f"there is no {what} at character {self.at + 1}")
        self.at = found.end()
        return found

    def value(self) -> tuple[Value, str]:
        """A bare item, and how it is serialized."""
        first = self.peek()
        if first == '"':
            found = self.want(_STRING, "string that ends")
            return _ESCAPED.sub(r"\1", found[1]), found[0]
        if first == ":":
            found = self.want(_BYTES, "byte sequence (:base64:)")
            decoded = _decoded(found[1])
            return decoded, f":{binascii.b2a_base64(decoded, newline=False).decode()}:"
        if first == "?":
            text = self.want(_BOOLEAN, "boolean")[0]
            return text == "?1", text
        if first == "-" or first.isdigit():
            number = int(self.want(_INTEGER, "integer")[0])
            return number, str(number)
        text = self.want(_TOKEN, "value")[0]
        return text, text

    def params(self) -> tuple[dict[str, Value], str]:
        """Parameters, and how they are serialized."""
        found: dict[str, Value] = {}
        texts: dict[str, str] = {}
        while self.take(";"):
            self.skip(_SPACES)
            key = self.want(_KEY, "parameter")[0]
            value, text = self.value() if self.take("=") else (True, "?1")
            if key in found:
                # The last would win, and somebody in between may think otherwise.
                raise Malformed(f"the parameter {key} is there twice")
            found[key] = value
            texts[key] = f";{key}" if value is True else f";{key}={text}"
            if len(found) > MAX_PARTS:
                raise Malformed(f"it has more than {MAX_PARTS} parameters")
        return found, "".join(texts.values())

    def inner_list(self) -> InnerList:
        plain = _PLAIN_LIST.match(self.text, self.at)
        if plain is not None:
            self.at = plain.end()
            names = _plain_names(plain[0])
            params, text = self.params()
            return InnerList(names, params, f"({plain[0]}{text}")
        items: list[tuple[str, str]] = []
        while True:
            self.skip(_SPACES)
            if self.take(")"):
                break
            if self.peek() != '"':
                raise Malformed(f"there is no component in quotes at character {self.at + 1}")
            value, _ = self.value()
            items.append((str(value), self.params()[1]))
            if len(items) > MAX_PARTS:
                raise Malformed(f"it covers more than {MAX_PARTS} components")
            if self.peek() not in (" ", ")"):
                raise Malformed(f"there is no blank or ) at character {self.at + 1}")
        params, text = self.params()
        written = " ".join(f"{_quoted(name)}{own}" for name, own in items)
        return InnerList(tuple(items), params, f"({written}){text}")


@lru_cache(maxsize=256)
def _plain_names(text: str) -> tuple[tuple[str, str], ...]:
    """The strings of a list without escapes and parameters; a sender's are always the same."""
    names = text[1:-2].split('" "') if len(text) > 1 else []
    if len(names) > MAX_PARTS:
        raise Malformed(f"it covers more than {MAX_PARTS} components")
    return tuple((name, "") for name in names)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def inner_lists(text: str) -> dict[str, InnerList]:
    """The members of a dictionary of inner lists, such as Signature-Input.

    :raises Malformed: it is none.
    """
    return {key: member for key, member in _members(text) if isinstance(member, InnerList)}


def byte_sequences(text: str) -> dict[str, bytes]:
    """The members of a dictionary of byte sequences, such as Signature and Content-Digest.

    :raises Malformed: it is none.
    """
    only = _ONE_SEQUENCE.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if only is not None:
        return {only[1]: _decoded(only[2])}
    return {key: member for key, member in _members(text) if isinstance(member, bytes)}


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise Malformed("its bytes are not base64") from error


def _members(text: str) -> list[tuple[str, InnerList | Value]]:
    if not text.isascii():
        raise Malformed("it is not ASCII")
    reader = _Reader(text)
    found: dict[str, InnerList | Value] = {}
    while True:
        key = reader.want(_KEY, "label")[0]
        member: InnerList | Value = True
        if reader.take("="):
            if reader.take("("):
                member = reader.inner_list()
            else:
                member, _ = reader.value()
                reader.params()
        else:
            reader.params()
        if key in found:
            raise Malformed(f"the label {key} is there twice")
        found[key] = member
        if len(found) > MAX_PARTS:
            raise Malformed(f"it has more than {MAX_PARTS} members")
        reader.skip(_BLANKS)
        if reader.at == len(reader.text):
            return list(found.items())
        if not reader.take(","):
            raise Malformed(f"there is no comma at character {reader.at + 1}")
        reader.skip(_BLANKS)
