"""What is a secret: names whose values are, and patterns that are wherever they stand.

Every pattern here runs on text that a stranger wrote, on a thread that shares the service's
interpreter: each is bounded or possessive, so that no text takes more than linear time.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

MASK = "[REDACTED]"

#: Tells whether a value under a name is a secret.
IsSensitive = Callable[[str], bool]

# Matched anywhere in a key once it is lower-cased and stripped of all but letters and digits.
_SENSITIVE_PARTS = (
    "password", "passwd", "passphrase", "passcode", "pwd", "secret", "token", "apikey",
    "accesskey", "privatekey", "signingkey", "encryptionkey", "authorization", "authsignature",
    "authentication", "authcode", "oauth", "credential", "cookie", "session", "cardnumber",
    "cardno", "creditcard", "debitcard", "securitycode", "pincode", "cvv", "accountnumber",
    "routingnumber", "socialsecurity", "taxid", "passport", "driverslicense", "bearer", "csrf",
    "xsrf",
)  # fmt: skip
# Matched as whole words of a key: inside others they are chance (busineSS Name, foOTPrint).
_SENSITIVE_WORDS = frozenset(
    ("auth", "card", "cvc", "iban", "jwt", "otp", "pan", "pass", "pin", "sid", "sig",
     "signature", "ssn")
)  # fmt: skip
# Contain a part, and are no secret.
_HARMLESS = frozenset(("tokentype", "sessioncount"))

_LONGEST_NAME = 200
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_NON_ALNUM = re.compile(r"[^a-z0-9]+")

# Whole dotted words, so that no part of one is looked at twice; a token begins within.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)++")
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", re.DOTALL
)
_SCHEME = re.compile(r"(?i)\b(bearer|basic|digest)(\s{1,8})([A-Za-z0-9._~+/=-]{6,})")
_DIGITS = re.compile(r"(?<![0-9A-Za-z])[0-9](?:[ -]?[0-9]){11,}+")
# Cards are written in up to five groups; a longer row of short numbers is something else.
_CARD_GROUPS = 8
_DIGIT_GROUP = re.compile(r"[0-9]+")
# Cheap test before the patterns: nearly all strings have none of these.
_HINT = re.compile(r"(?i)eyj|-----begin|bearer|basic|digest|[0-9][ -]?(?:[0-9][ -]?){11}")

_KEY = r"""(?<![\w.-])([\w.-]++)([\\"'\]]*+"""
_PROSE = re.compile(_KEY + r"[ \t]{0,8}(?:=>|[=:])\s{0,8})")
_INLINE = re.compile(_KEY + r"=)")
_VALUE = re.compile(
    r"""(?i)(?:(?:bearer|basic|digest|token|negotiate)[ \t]{1,8})?[^\s"'<>&,;{}\[\]]++"""
)
_LINE_VALUE = re.compile(r"[^\r\n]++")
# Not from within a run of backslashes, which would be looked at again from each of them.
_QUOTE = re.compile(r"""(?<!\\)(\\*+)(["'])""")
_WHOLE_LINE = frozenset(("authorization", "proxyauthorization", "cookie", "setcookie"))
_BRACKETS = {"{": re.compile(r"[{}]"), "[": re.compile(r"[\[\]]")}

_START_TAG = re.compile(r"<([A-Za-z_][\w.:-]{0,100})((?:\s[^<>]{0,4000})?)>")
_NAME_ATTRIBUTE = re.compile(r"""(?i)\b(?:name|id|key|property)\s{0,4}=\s{0,4}["']?([\w.-]+)""")
_VALUE_ATTRIBUTE = re.compile(
    r"""(?i)(\b(?:value|content)\s{0,4}=\s{0,4})("[^"]*"|'[^']*'|[^\s"'<>]+)"""
)


def _compatible(key: str) -> str:
    """Return `key` with full-width letters and the like as the ones they are read as.

    Normalisation takes time that grows with the square of a run of combining marks.
    """
    return key if key.isascii() else unicodedata.normalize("NFKC", key[:_LONGEST_NAME])


def normalise_key(key: str) -> str:
    """Return `key` in lower case with letters and digits alone: Card-Number → cardnumber."""
    return _NON_ALNUM.sub("", _compatible(key).casefold())


def sensitive_key(key: str, extra: frozenset[str]) -> bool:
    """Whether a value under `key` is a secret; `extra` holds further normalised names."""
    # Long names are hostile, and not worth a place in the cache.
    return _cached(key, extra) if len(key) <= _LONGEST_NAME else _decide(key, extra)


def _decide(key: str, extra: frozenset[str]) -> bool:
    if len(key) > _LONGEST_NAME and not key.isascii():
        # No name that anyone gives, and none that is cheaply looked through.
        return True
    plain = normalise_key(key)
    if plain in _HARMLESS:
        return False
    return (
        plain in extra
        or any(part in plain for part in _SENSITIVE_PARTS)
        or any(word.lower() in _SENSITIVE_WORDS for word in _WORDS.findall(_compatible(key)))
    )


_cached = lru_cache(maxsize=4096)(_decide)


# -- patterns -------------------------------------------------------------------------------


def mask_patterns(text: str) -> str:
    """Return `text` without tokens, keys, credentials and card numbers."""
    if _HINT.search(text) is None:
        return text
    if "eyJ" in text:
        text = _DOTTED.sub(_mask_web_token, text)
    if "-----BEGIN" in text:
        text = _PEM.sub(MASK, text)
    return _DIGITS.sub(_mask_cards, _SCHEME.sub(_mask_scheme, text))


def _mask_web_token(match: re.Match[str]) -> str:
    """Mask a JSON web token: it begins as JSON does in base64, and has two parts or more."""
    text = match.group()
    start = text.find("eyJ")
    return text[:start] + MASK if start >= 0 and "." in text[start + 7 :] else text


def _mask_scheme(match: re.Match[str]) -> str:
    scheme, space, credential = match.groups()
    # «Basic training», «bearer of news»: words, where credentials are anything else.
    if credential.rstrip(".").isalpha() and len(credential) < 24 and not _is_basic(credential):
        return match.group()
    return f"{scheme}{space}{MASK}"


def _is_basic(credential: str) -> bool:
    try:
        return b":" in base64.b64decode(credential, validate=True)
    except ValueError:
        return False


def _mask_cards(match: re.Match[str]) -> str:
    """Mask the card numbers in a run of digits; what stands beside one (an expiry date, an order
    number) must not hide it."""
    text = match.group()
    groups = [(group.start(), group.end()) for group in _DIGIT_GROUP.finditer(text)]
    masked, done, index = "", 0, 0
    while index < len(groups):
        digits, last = "", None
        if text[groups[index][0]] not in "234568":
            index += 1
            continue
        for until in range(index, min(index + _CARD_GROUPS, len(groups))):
            digits += text[groups[until][0] : groups[until][1]]
            if len(digits) > 19:
                break
            if len(digits) >= 13 and is_card(digits, grouped=until > index):
                last = until
        if last is None:
            index += 1
            continue
        masked += text[done : groups[index][0]] + MASK
        done = groups[last][1]
        index = last + 1
    return masked + text[done:]


def is_card(digits: str, grouped: bool = False) -> bool:
    """Whether `digits` has the prefix and length of a card scheme and a right check digit.

    The prefixes keep item, order and site numbers, a tenth of which pass Luhn, out of it; so does
    the check digit of trade item numbers, unless the digits are `grouped` as on a card.
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
    if not scheme or not _luhn(digits):
        return False
    return length > 14 or grouped or not _is_trade_item(digits)


def _luhn(digits: str) -> bool:
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit)
        if index % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def _is_trade_item(digits: str) -> bool:
    """Whether this is a GTIN (8 to 14 digits) by its check digit: weights 1, 3, 1 from the end."""
    weighed = (int(digit) * (3 if index % 2 else 1) for index, digit in enumerate(reversed(digits)))
    return sum(weighed) % 10 == 0


# -- names and values in text ---------------------------------------------------------------


def mask_inline(text: str, is_sensitive: IsSensitive) -> str:
    """Mask the values of ``name=value``, as in addresses and query strings."""
    return _mask_values(_INLINE, text, is_sensitive) if "=" in text else text


def mask_prose(text: str, is_sensitive: IsSensitive) -> str:
    """Mask the values of ``name=value``, ``name: value``, and ``"name": {…}`` in any text."""
    return _mask_values(_PROSE, text, is_sensitive)


def _mask_values(pattern: re.Pattern[str], text: str, is_sensitive: IsSensitive) -> str:
    kept, done = [], 0
    for found in pattern.finditer(text):
        start = found.end()
        if start < done or not is_sensitive(found[1]):
            continue
        end, quote = _value_end(text, start, normalise_key(found[1]) in _WHOLE_LINE)
        if end - start <= 2 * len(quote):
            # Nothing there: it tells the reader that the value was empty.
            continue
        closing = quote if text.endswith(quote, start + len(quote), end) else ""
        kept += [text[done:start], quote, MASK, closing]
        done = end
    return "".join([*kept, text[done:]]) if kept else text


def _value_end(text: str, start: int, whole_line: bool) -> tuple[int, str]:
    """Where the value at `start` ends, and the quote around it, if it has one."""
    quote = _QUOTE.match(text, start)
    if quote is not None:
        return _quote_end(text, quote), quote.group()
    if text[start : start + 1] in _BRACKETS:
        return _bracket_end(text, start), ""
    value = (_LINE_VALUE if whole_line else _VALUE).match(text, start)
    return (start if value is None else value.end()), ""


def _quote_end(text: str, opening: re.Match[str]) -> int:
    """Where a quoted value ends; quotes may be escaped as deep as JSON was put into JSON."""
    depth = len(opening[1])
    for quote in _QUOTE.finditer(text, opening.end()):
        escapes = len(quote[1])
        ends = escapes % 2 == 0 if depth == 0 else escapes <= depth
        if ends and quote[2] == opening[2]:
            return quote.end()
    return len(text)


def _bracket_end(text: str, start: int) -> int:
    """Where the bracket at `start` is closed again, or the end of the text."""
    opening = text[start]
    depth = 0
    for bracket in _BRACKETS[opening].finditer(text, start):
        depth += 1 if bracket.group() == opening else -1
        if depth == 0:
            return bracket.end()
    return len(text)


def mask_markup(text: str, is_sensitive: IsSensitive) -> str:
    """Mask the contents of elements, and of named form fields, that hold a secret."""
    kept, done = [], 0
    for tag in _START_TAG.finditer(text):
        if tag.start() < done:
            continue
        name, attributes = tag.groups()
        named = _NAME_ATTRIBUTE.search(attributes)
        field = named is not None and is_sensitive(named[1])
        if not field and not is_sensitive(name.rpartition(":")[2]):
            continue
        shown = attributes
        if field:
            shown = _VALUE_ATTRIBUTE.sub(lambda match: f'{match[1]}"{MASK}"', attributes)
        kept += [text[done : tag.start()], f"<{name}{shown}>"]
        done = tag.end()
        if not attributes.endswith("/") and name.lower() not in ("input", "meta", "param"):
            end = text.find(f"</{name}", done)
            # Never closed: nobody knows where the secret ends.
            end = len(text) if end < 0 else end
            if text[done:end].strip():
                kept.append(MASK)
                done = end
    return "".join([*kept, text[done:]]) if kept else text
