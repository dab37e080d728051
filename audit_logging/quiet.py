"""Texts that hold nothing to mask, told at a glance.

Nearly all strings of nearly all requests hold no secret, and the patterns of
:mod:`~audit_logging.masking` cost ten times what the rest of an event does. What is asked here are
questions that the interpreter answers in C, mostly by looking for one character. Each is a
*necessary* condition: where the answer is no, no pattern finds anything in the text, nor in any
part of it. A yes says nothing, and the patterns look.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import unquote

from .cards import may_be_card
from .sensitive import may_hide_letters
from .shell import may_be_command
from .tables import may_be_table

#: A text of letters and digits alone that is shorter is neither card, token nor key.
SHORT = 11

# Letters that are read as i, s and k where case does not matter.
_LIKE_LATIN = "\u0130\u0131\u017f\u212a"
_SCHEMES = ("bearer", "basic", "token", "key", "negotiate", "ntlm", "digest")
_BLANKS = (" ", "\n", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f")
_WITH_HYPHEN = ("glpat-", "xox", "sk-")
_WITH_UNDERSCORE = (
    "ghp_", "gho_", "ghs_", "ghr_", "ghu_", "github_", "k_live_", "k_test_", "npm_",
)  # fmt: skip
_WITH_A = ("AKIA", "ASIA", "AIza")

# Digits become 0, all else a space, and what may stand between the digits of a card is taken out.
_BETWEEN = " ._/\t-\xa0\u2010\u2011\u2012\u2013\u2014\u2015".encode()
_DIGITS = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))
_FEWEST = b"0" * 13
# Digits stay, what may stand between them becomes a hyphen, all else a space.
_NUMBERS = bytes(byte if 48 <= byte < 58 else 45 if byte in _BETWEEN else 32 for byte in range(256))

#: A moment, as most programs write it.
TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?"
    r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_PAIR = r"[\w.-]{1,60}+=[\w.~+/,-]*+"
_PAIRS = re.compile(rf"{_PAIR}(?:&{_PAIR})*+", re.ASCII)
_ADDRESS = re.compile(rf"https?://[\w.~/-]*+(?:\?({_PAIR}(?:&{_PAIR})*+))?", re.ASCII)
# Without one of these no name stands beside a value, and nothing is escaped.
_TELLING = ("<", ":", "=", "&", "%", "\\", ">")
# What JSON in a string begins with.
_JSON = ("{", "[", '"')
_BLANK = "\ufeff \t\r\n"


class Names(Protocol):
    """What is asked about names here."""

    #: Whether addresses and times can be taken for what they are.
    usual: bool

    def is_plain_parameter(self, name: str) -> bool:
        """Whether `name` tells nothing, also where it follows «&»."""


def _any(needles: Iterable[str], text: str) -> bool:
    # A loop: a generator costs more than what it asks.
    for needle in needles:  # noqa: SIM110
        if needle in text:
            return True
    return False


def may_hold_vendor_key(text: str) -> bool:
    """Whether a key that says whose it is could stand in `text`."""
    return (
        ("-" in text and _any(_WITH_HYPHEN, text))
        or ("_" in text and _any(_WITH_UNDERSCORE, text))
        or ("A" in text and _any(_WITH_A, text))
    )


def may_hold_scheme(text: str) -> bool:
    """Whether «Bearer …» or the like could: the name of a scheme, and white space."""
    if text.isascii():
        if not _any(_BLANKS, text):
            return False
    elif _any(_LIKE_LATIN, text):
        return True
    return _any(_SCHEMES, text.lower())


def may_hold_card(text: str) -> bool:
    """Whether a card number could, written in one or in groups."""
    if len(text) < len(_FEWEST):
        return False
    raw = text.encode("utf-8", "replace")
    if _FEWEST not in raw.translate(_DIGITS, _BETWEEN):
        return False
    for number in raw.translate(_NUMBERS).split():
        if len(number) - number.count(b"-") < len(_FEWEST):
            continue
        if may_be_card(number.decode().split("-")):
            return True
    return False


def may_hold_user(text: str) -> bool:
    """Whether an address with a password in it could."""
    return "@" in text and "://" in text


def may_hold_credential(text: str) -> bool:
    """Whether a credential, key or card number could stand in `text`, beside a name or not."""
    return may_hold_user(text) or _may_hold_token(text)


def _may_hold_token(text: str) -> bool:
    return (
        ("J" in text and "eyJ" in text)
        or ("-" in text and "-----BEGIN" in text)
        or may_hold_vendor_key(text)
        or may_hold_scheme(text)
        or may_hold_card(text)
    )


def may_state(text: str) -> bool:
    """Whether something *is* something: «the password is …»."""
    return " is" in text or " was" in text or " IS" in text


def _may_hold_pair(text: str) -> bool:
    """("password", …"""
    return "," in text and ("(" in text or "[" in text) and ("'" in text or '"' in text)


def may_name(text: str, names: Names) -> bool:
    """Whether a name that tells could stand beside its value in `text`, escaped or not."""
    if "<" in text or "\\" in text or ("-" in text and "--" in text):
        return True
    if (" " in text and (may_state(text) or may_be_command(text))) or may_be_table(text):
        return True
    if not text.isascii() and may_hide_letters(text):
        return True
    if ":" in text or "=" in text or ">" in text:
        return not (names.usual and (TIME.fullmatch(text) or _is_plain_address(text, names)))
    if "&" in text and ("&#" in text or html.unescape(text) != text):
        return True
    if "%" in text and unquote(text, errors="replace") != text:
        return True
    return _may_hold_pair(text)


def _is_plain_address(text: str, names: Names) -> bool:
    """Whether `text` is an address whose parameters have names that tell nothing."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and (found[1] is None or _are_plain(found[1], names))


def _are_plain(pairs: str, names: Names) -> bool:
    for pair in pairs.split("&"):  # noqa: SIM110
        if not names.is_plain_parameter(pair[: pair.index("=")]):
            return False
    return True


def is_quiet(text: str, names: Names) -> bool:
    """Whether nothing in `text` can be a secret by any pattern."""
    if len(text) < SHORT and text.isalnum():
        return True
    return not may_name(text, names) and not may_hold_credential(text)


def is_quiet_query(text: str, names: Names) -> bool:
    """Whether `text` is ``name=value&…`` without escapes, where nothing can be a secret."""
    return (
        _PAIRS.fullmatch(text) is not None
        and _are_plain(text, names)
        and "--" not in text
        and not may_hold_credential(text.replace("+", " ") if "+" in text else text)
    )


def loud(texts: list[str], names: Names) -> list[str]:
    """Return those of `texts` that are not quiet, or could be JSON themselves."""
    # No pattern takes this separator for a part of anything it looks for.
    together = "\0".join(texts)
    suspects: set[str] = set()
    if may_hold_user(together):
        suspects.update([text for text in texts if "@" in text and "://" in text])
    if _may_hold_token(together):
        suspects.update([text for text in texts if _may_hold_token(text)])
    named: set[str] = set()
    for sign in _TELLING:
        if sign in together:
            named.update([text for text in texts if sign in text])
    if may_state(together):
        named.update([text for text in texts if may_state(text)])
    if may_be_command(together):
        named.update([text for text in texts if may_be_command(text)])
    if not together.isascii() and may_hide_letters(together):
        named.update([text for text in texts if may_hide_letters(text)])
    if "\n" in together:
        named.update([text for text in texts if "\n" in text])
    if "-" in together and "--" in together:
        named.update([text for text in texts if "--" in text])
    if _may_hold_pair(together):
        named.update([text for text in texts if "," in text])
    suspects.update([text for text in named if may_name(text, names)])
    for sign in _JSON:
        if sign in together:
            suspects.update([text for text in texts if text.lstrip(_BLANK).startswith(sign)])
    return list(suspects)
