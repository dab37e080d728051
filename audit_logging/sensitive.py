"""Names whose values are secrets, in any spelling: in any case, with or without separators and
accents, in full-width letters, in letters of other scripts that look like Latin ones, and with
characters between that nobody sees.

Not seen: letters that look alike in rarer scripts (Armenian, Cherokee, mathematical ones are),
digits for letters («p4ssword»), and names in other languages than the few below.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

MASK = "[REDACTED]"

#: Tells whether a value under a name is a secret.
IsSensitive = Callable[[str], bool]

# Matched anywhere in a key once it is lower-cased and stripped of all but letters and digits.
_PARTS = re.compile(
    "|".join((
        "password", "passwd", "passwrd", "passphrase", "passcode", "pwd", "userpass", "dbpass",
        "passwort", "kennwort", "motdepasse", "contrasena",
        "secret", "token", "credential", "bearer", "csrf", "xsrf", "oauth", "authori[sz]ation",
        "authsignature", "authentication", "authcode", "clientassertion", "samlresponse",
        "samlassertion", "codeverifier", "cookie", "session", "sessid",
        "(?:api|access|private|signing|encryption|client|app|master|ssh|subscription|account)key",
        "(?:security|pin|mfa|otp|verification|recovery|backup|onetime)code", "securityanswer",
        "onetimepass", "(?:card|acct|account)(?:no|num|number)(?![a-z])", "cardnumber",
        "accountnumber", "creditcard", "debitcard", "cardpin", "cvv", "routingnumber",
        "socialsecurity", "maidenname", "taxid", "passport", "driverslicense",
    ))
)  # fmt: skip
# Matched as whole words of a key: inside others they are chance (busineSS Name, foOTPrint).
_SENSITIVE_WORDS = frozenset(
    ("auth", "card", "clabe", "clave", "curp", "cvc", "iban", "jwt", "otp", "otps", "pan", "pans",
     "pass", "pin", "pins", "psw", "pw", "senha", "sid", "sig", "signature", "ssn", "totp")
)  # fmt: skip
# Contain a part, and are no secret.
_HARMLESS = re.compile(
    r"(?:card|cookie|session|token)s?(?:count|limit|type|brand|usage|used)|secretar(?:y|ies|iat)"
    r"|tokeni[sz](?:e|ed|er|ation)"
    r"|(?:max|min|total|prompt|completion|input|output|cached|num)(?:new|output)?tokens?"
)
#: Values that tell no secret, and tell a reader something.
SAYS_NOTHING = frozenset(("", "true", "false", "null", "none", "required", "optional"))

_LONGEST_NAME = 200
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_PATH = re.compile(r"[\[\].:/]+")
_NON_ALNUM = re.compile(r"[^a-z0-9]+")
# First and last of each run.
_HIDDEN = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xE0000, 0xE01EF),
)  # fmt: skip
_INVISIBLE = re.compile(f"[{''.join(f'{chr(first)}-{chr(last)}' for first, last in _HIDDEN)}]")
# Cyrillic and Greek, and Latin letters that are taken apart by no normal form.
_CYRILLIC = "аеорсухіјѕԁһԛԝкмтвнӏАЕОРСУХІЈЅԀҺԚԜКМТВНӀҮүԍɡ"
_LATIN_1 = "aeopcyxijsdhqwkmtbhlAEOPCYXIJSDHQWKMTBHIYygg"
_GREEK = "αονρικτυεχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧϲϳηıſɑøłđ"
_LATIN_2 = "aovpiktuexwABEZHIKMNOPTYXcjnisaold"
_LOOK_LIKE = {
    **str.maketrans(_CYRILLIC + _GREEK, _LATIN_1 + _LATIN_2),
    **{code: None for first, last in _HIDDEN for code in range(first, last + 1)},
}


def _compatible(key: str) -> str:
    """Return `key` with full-width letters and the like as the ones they are read as, and accents
    apart.

    Normalisation takes time that grows with the square of a run of combining marks.
    """
    if key.isascii():
        return key
    return unicodedata.normalize("NFKD", key[:_LONGEST_NAME]).translate(_LOOK_LIKE)


def may_hide_letters(text: str) -> bool:
    """Whether `text` holds characters that nobody sees."""
    return _INVISIBLE.search(text) is not None


def without_invisible(text: str) -> str:
    """Return `text` without the characters that nobody sees."""
    return text if text.isascii() else _INVISIBLE.sub("", text)


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
    if _HARMLESS.fullmatch(plain):
        return False
    return (
        plain in extra
        # user[loyalty_id], user.loyalty_id
        or any(normalise_key(part) in extra for part in (_PATH.split(key) if extra else ()))
        or _PARTS.search(plain) is not None
        or any(word.lower() in _SENSITIVE_WORDS for word in _WORDS.findall(_compatible(key)))
    )


_cached = lru_cache(maxsize=4096)(_decide)
