"""Secrets in text: credentials wherever they stand, and values beside a name that tells.

Every pattern here runs on text that a stranger wrote, on a thread that shares the service's
interpreter: each is bounded or possessive, so that no text takes more than linear time.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable
from urllib.parse import unquote

from .cards import mask_cards
from .markup import mask_markup
from .names import Names
from .pieces import PIECE, by_pieces, matches, short_matches
from .quiet import (
    is_quiet,
    may_hold_card,
    may_hold_credential,
    may_hold_scheme,
    may_hold_vendor_key,
    may_state,
)
from .sensitive import MASK, SAYS_NOTHING, IsSensitive, without_invisible
from .shell import mask_commands
from .tables import mask_table

# -- credentials ----------------------------------------------------------------------------

# Whole dotted words, so that no part of one is looked at twice; a token begins within.
_DOTTED = re.compile(r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)++")
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,40}-----.*?(?:-----END [A-Z0-9 ]{1,40}-----|\Z)", re.DOTALL
)
_SCHEME = re.compile(
    r"(?i)\b(bearer|basic|token|api-?key|negotiate|ntlm)(\s{1,8})([A-Za-z0-9._~+/=-]{6,}+)"
)
_DIGEST = re.compile(r"(?i)\b(digest\s{1,8})\w{2,30}=[^\r\n]*+")
_USER_INFO = re.compile(r"(://[^\s/:@?#\"'<>]*+:)[^\s/@\"'<>]++(?=@)")
# Keys of well-known services, which say what they are.
_VENDOR = re.compile(
    r"(?<![A-Za-z0-9])(?:A(?:KI|SI)A[0-9A-Za-z]{12,}+|gh[opsru]_[0-9A-Za-z]{16,}+"
    r"|github_pat_\w{16,}+|glpat-[\w-]{16,}+|[prs]k_(?:live|test)_\w{8,}+|xox[abprs]-[\w-]{10,}+"
    r"|AIza[\w-]{30,}+|npm_[0-9A-Za-z]{30,}+|sk-[\w-]{20,}+)"
)


def mask_credentials(text: str, breathe: Callable[[], None] = lambda: None) -> str:
    """Return `text` without tokens, keys, credentials and card numbers.

    :param breathe: called again and again during long work.
    """
    if len(text) <= PIECE and not may_hold_credential(text):
        return text
    if "-----BEGIN" in text:
        text = _PEM.sub(MASK, text)
        breathe()
    if "@" in text and "://" in text:
        text = by_pieces(text, _NOT_IN_USER, _mask_user, breathe)
    if may_hold_scheme(text) and "digest" in text.lower():
        text = _DIGEST.sub(rf"\1{MASK}", text)
        breathe()
    return by_pieces(text, _NOT_IN_TOKEN, _mask_tokens, breathe)


# What no password in an address, and no token, key or card number holds.
_NOT_IN_USER = " \n\t\"'<>"
_NOT_IN_TOKEN = "\"'<>,;:(){}[]&?|!#*@%"  # noqa: S105


def _mask_user(text: str) -> str:
    return _USER_INFO.sub(rf"\1{MASK}", text) if "@" in text and "://" in text else text


def _mask_tokens(text: str) -> str:
    if "J" in text and "eyJ" in text:
        text = _DOTTED.sub(_mask_web_token, text)
    if may_hold_scheme(text):
        text = _SCHEME.sub(_mask_scheme, text)
    if may_hold_vendor_key(text):
        text = _VENDOR.sub(MASK, text)
    return mask_cards(text) if may_hold_card(text) else text


def _mask_web_token(match: re.Match[str]) -> str:
    """Mask a JSON web token: it begins as JSON does in base64, and has two parts or more."""
    text = match.group()
    start = text.find("eyJ")
    return text[:start] + MASK if start >= 0 and "." in text[start + 7 :] else text


def _mask_scheme(match: re.Match[str]) -> str:
    scheme, space, credential = match.groups()
    # «Basic training», «bearer of news», «token expired»: words, where credentials are not.
    core = credential.rstrip("=.")
    if scheme.lower() == "basic":
        secret = len(core) >= 24 or _is_basic(core)
    else:
        plain = core[1:].islower() and core.replace("-", "").isalpha()
        secret = len(core) >= 24 or not (plain or "=" in core or core.isupper())
    return f"{scheme}{space}{MASK}" if secret else match.group()


def _is_basic(credential: str) -> bool:
    try:
        return b":" in base64.b64decode(credential + "=" * (-len(credential) % 4), validate=True)
    except ValueError:
        return False


# -- names and values -----------------------------------------------------------------------

_WORD = r"[\w.-]++"
# Up to three words, as in «API key: …» and API+key=…; what may close after the name.
_NAME = rf"(?<![\w.-])((?:{_WORD}[ +](?=\w)){{0,2}}+)({_WORD})[\\\"'`\])]*+"
_SAID = (
    "(?i:a|about|absent|accepted|active|allowed|already|also|an|and|available|being|blank|but|case"
    "|changed|checked|closed|common|correct|created|currently|declined|deleted|denied|different"
    "|disabled|empty|enabled|encrypted|exhausted|expired|for|forbidden|found|from|generated|given"
    "|hashed|hidden|ignored|in|inactive|incorrect|invalid|just|locked|long|malformed|mandatory"
    "|missing|necessary|needed|never|no|none|not|now|null|of|off|ok|okay|on|only|open|optional|or"
    "|out|over|present|provided|refused|rejected|required|reset|returned|revoked|same|saved|sent"
    "|short|shown|similar|still|stored|strong|supported|temporarily|that|the|to|too|unavailable"
    "|unknown|unset|unsupported|updated|used|valid|verified|very|weak|what|where|wrong|your)"
)
_INLINE = re.compile(rf"{_NAME}=")
_PROSE = re.compile(rf"{_NAME}(?:</[a-z]{{1,10}}>)?+(?:[ \t]*+(?:=>|->|:=|={{1,3}}|:)\s*+)")
_OPTION = re.compile(r"(?<![\w-])()--([\w-]{2,60}+)[ \t]++")
# {"name": "password", "value": …}, also over lines, ("password", …) and "--password", "…".
_NAMED = re.compile(
    r"""(?i)\b()(?:name|key|k|field|header|id|label|type|attribute|property|path)\\*+["']?"""
    r"""[ \t]{0,4}[:=][ \t]{0,4}"""
    r"""\\*+["']?([\w./-]{1,60}+)\\*+["']?(?:,\s{0,40}|\s{1,40})\\*+["']?"""
    r"""(?:(?:new_?|old_?|string_?)?values?|val|v|content)\\*+["']?[ \t]{0,4}[:=]\s{0,8}"""
    r"""|\b(?:name|label|question|field|attribute)\\*+["'][ \t]{0,4}:[ \t]{0,4}"""
    r"""\\*+["']([\w./-]{1,60}+)\\*+["'],\s{0,40}\\*+["']"""
    r"""(?:text|answer|response|before|after|old|new)\\*+["'][ \t]{0,4}:\s{0,8}"""
    r"""|\\*+["']--?([\w-]{2,60}+)\\*+["']\s{0,4},\s{0,8}"""
    r"""|[(\[]\s{0,4}\\*+["']([\w .-]{1,60}+)\\*+["']\s{0,4},\s{0,8}"""
    # s:3:"pin";s:4:"1234"; as PHP writes arrays.
    r"""|s:[0-9]{1,9}:\\*+["']([\w .-]{1,60}+)\\*+["'];(?:[sSaO]:[0-9]{1,9}:|[idbNRr]:)"""
)
# {"field": "password", "old": …, "new": …}: the second value; the first is told as any is.
_CHANGED = re.compile(
    r"""(?i)\b()(?:name|key|field|attribute|property|path)\\*+["'][ \t]{0,4}:[ \t]{0,4}"""
    r"""\\*+["']([\w./-]{1,60}+)\\*+["'],\s{0,40}"""
    r"""\\*+["'](?:old|new|before|after)\w{0,8}\\*+["'][ \t]{0,4}:[ \t]{0,4}"""
    r"""(?:[\w.+-]{1,60}+|\\*+["'][^"'\\\n]{0,200}+\\*+["']),\s{0,40}"""
    r"""\\*+["'](?:old|new|before|after)\w{0,8}\\*+["'][ \t]{0,4}:\s{0,8}"""
)
# The longest match of these, as long as nobody quotes more often than this.
_LONGEST_NAMED = 600
_BACKSLASHES = "\\" * 64
# «The password is …»: one word, and not what is usually said of passwords.
_STATED = re.compile(
    r"(?<![\w.-])((?:[\w.-]{1,40}+ ){0,2}?)([\w.-]{1,60}+)[\\\"'`\])]{0,8}+ (?:is|was|IS)"
    rf"(?: (?:now|set to|still))?:? (?=\S)(?!{_SAID}\b(?![^\w\s]{{1,20}}\w))"
)
_STATED_VALUE = re.compile(r"\S++")
# Content-Disposition: form-data; name="password", then an empty line, then the value.
_EOL = r"(?:\r?\n|(?:\\{1,8}r)?\\{1,8}n)"
_PART = re.compile(
    r"""(?i)form-data;[^\r\n\\]{0,120}?\bname=\\*+["']?([^"'\r\n\\;]{1,400}+)"""
    r"""[^\r\n\\]{0,300}+(?:\\*+"[^\r\n\\]{0,300}+){0,8}+"""
    rf"""(?:{_EOL}[\w-]{{1,60}}:[^\r\n\\]{{0,300}}+){{0,5}}+{_EOL}{_EOL}"""
)
_PART_END = re.compile(rf"{_EOL}--")
_LAST_WORDS = frozenset(("key", "keys", "code", "number", "value", "word"))

_TAGS = re.compile(r"(?:</?[A-Za-z][^<>\r\n]{0,200}>\s{0,8}){1,3}")
_QUERY_VALUE = re.compile(r"""[^\s"'<>&#]*+""")
_LINE = re.compile(r"[^\r\n]*+")
_LINE_OF_MARKUP = re.compile(r"[^\r\n<]*+")
# «|» and «>» begin a text of several lines in YAML; headers may be folded.
_INDENTED = re.compile(r"(?:\r?\n[ \t]++[^\r\n]*+)*+")
_BLOCK = re.compile(r"[|>][+-]?[0-9]?[ \t]*+(?=[\r\n])")
_FOLDED = frozenset(("authorization", "proxy-authorization", "cookie", "set-cookie"))
_NOTHING = re.compile(r"(?i)(true|false|null|none|required|optional)[ \t]*+(?=[,;&<}\])\r\n]|\Z)")
# b'…', SecretStr('…'), Decimal('…')
_WRAPPED = re.compile(r"""(?:[bBfFrRuU]{1,2}|[A-Za-z_][\w.]{0,60}\()(?=\\*+["'])""")
# Not from within a run of backslashes, which would be looked at again from each of them.
_QUOTE = re.compile(r"""(?<!\\)(\\*+)(["'`])""")
_REST = re.compile(r"""[^\s,;:)}\]&<>"'\\]*+""")
_BRACKETS = {"{": re.compile(r"[{}]"), "[": re.compile(r"[\[\]]"), "(": re.compile(r"[()]")}


def mask_path(text: str, names: Names) -> str:
    """Mask ``name=value`` and credentials; a colon is no sign of a value in a path."""
    if "=" in text:
        text = _mask_values(_INLINE, text, names.is_sensitive, lambda: None)
    return mask_credentials(text)


def mask_text(text: str, names: Names, breathe: Callable[[], None] = lambda: None) -> str:
    """Mask what is secret in any text: prose, markup, logs, code, and escaped forms of these.

    :param breathe: called again and again during long work.
    """
    if is_quiet(text, names):
        return text
    seen = masked = _mask_once(text, names.is_sensitive, breathe)
    for _ in range(2):
        plain = by_pieces(seen, _NOT_IN_ESCAPE, _unescaped, breathe)
        if plain == seen:
            break
        breathe()
        seen = _mask_once(plain, names.is_sensitive, breathe)
        if seen != plain:
            masked = seen
    return masked


def _mask_once(text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]) -> str:
    if "<" in text:
        text = mask_markup(text, is_sensitive, breathe)
        breathe()
    if ":" in text or "=" in text or "->" in text:
        text = _mask_values(_PROSE, text, is_sensitive, breathe)
    if _may_be_named(text):
        if '",' in text or "'," in text:
            text = _mask_values(_CHANGED, text, is_sensitive, breathe)
        text = _mask_values(_NAMED, text, is_sensitive, breathe)
    if "--" in text:
        text = _mask_values(_OPTION, text, is_sensitive, breathe)
    text = mask_commands(text, breathe)
    if may_state(text):
        text = _mask_values(_STATED, text, is_sensitive, breathe)
    if "form-data;" in text.lower():
        text = _mask_parts(text, is_sensitive, breathe)
    text = mask_table(text, is_sensitive, breathe)
    return mask_credentials(text, breathe)


def _may_be_named(text: str) -> bool:
    if "," in text and ("(" in text or "[" in text or '",' in text or "'," in text):
        return True
    if ";" in text and "s:" in text.lower():
        return True
    lower = text.lower()
    return "val" in lower or "content" in lower or _V.search(lower) is not None


_V = re.compile(r"""v\\*+["']?[ \t]{0,4}[:=]""")
_LONG_REFERENCE = re.compile(r"&#0*+[0-9]{8,}+")
# Escaped as deep as may be; not control characters, which would end lines, nor half a character.
_UNICODE_ESCAPE = re.compile(r"(?<!\\)\\++u((?!00[01]|[dD][89a-fA-F])[0-9a-fA-F]{4})")


# Neither in nor between escapes that make one character.
_NOT_IN_ESCAPE = " \n\t"


def _unescaped(text: str) -> str:
    """Return `text` with the escapes of HTML, addresses and JSON taken back once, and without
    what nobody sees."""
    if "&" in text:
        # Numbers that no character has, which are not read in linear time, if at all.
        text = html.unescape(_LONG_REFERENCE.sub("", text))
    if "%" in text:
        text = unquote(text, errors="replace")
    if "\\u" in text:
        text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return without_invisible(text)


def _names_secret(found: re.Match[str], is_sensitive: IsSensitive) -> bool:
    before, name = found[1], found[found.lastindex or 2]
    if is_sensitive(name):
        return True
    if not before or len(before) + len(name) > 100:
        return False
    return is_sensitive(before + name) and (name.lower() in _LAST_WORDS or not is_sensitive(before))


# In no name, nor between it and the sign after it. What spans lines has none of these.
_NOT_IN_NAME = "\n,;&?(|{"


def _mask_values(
    pattern: re.Pattern[str], text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]
) -> str:
    kept, done = [], 0
    markup = "</" in text
    if pattern is not _NAMED and pattern is not _CHANGED:
        each = matches(pattern, text, _NOT_IN_NAME, breathe)
    elif _BACKSLASHES in text:
        each = pattern.finditer(text)
    else:
        each = short_matches(pattern, text, _LONGEST_NAMED, breathe)
    for number, found in enumerate(each, 1):
        if number % 50 == 0:
            breathe()
        start = found.end()
        if start < done or not _names_secret(found, is_sensitive):
            continue
        if markup and (tags := _TAGS.match(text, start)):
            start = tags.end()
        end, quote = _value_end(text, start, found, markup)
        inner = text[start + len(quote) : end - len(quote)] if quote else ""
        if end <= start or (quote and inner.lower() in SAYS_NOTHING):
            # An empty value tells nothing, and tells the reader that it was empty.
            continue
        closing = quote if text.endswith(quote, start + len(quote), end) else ""
        kept += [text[done:start], quote, MASK, closing]
        done = end
    return "".join([*kept, text[done:]]) if kept else text


def _mask_parts(text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]) -> str:
    """Mask the values in a form that was quoted as it was sent: each up to the next boundary."""
    kept, done = [], 0
    for number, found in enumerate(_PART.finditer(text), 1):
        if number % 50 == 0:
            breathe()
        start = found.end()
        if start < done or not is_sensitive(found[1]):
            continue
        closing = _PART_END.search(text, start)
        end = closing.start() if closing else len(text)
        if text[start:end].strip():
            kept += [text[done:start], MASK]
            done = end
    return "".join([*kept, text[done:]]) if kept else text


def _value_end(text: str, start: int, found: re.Match[str], markup: bool) -> tuple[int, str]:
    """Where the value at `start` ends, and the quote around it, if it has one."""
    quote = _QUOTE.match(text, start)
    if quote is not None:
        return _quote_end(text, quote), quote.group()
    wrapped = _WRAPPED.match(text, start)
    if wrapped is not None and (quote := _QUOTE.match(text, wrapped.end())):
        return _quote_end(text, quote), ""
    if text[start : start + 1] in _BRACKETS:
        return _bracket_end(text, start), ""
    if _NOTHING.match(text, start):
        return start, ""
    name = found[found.lastindex or 2]
    if found.re is _STATED:
        return _STATED_VALUE.match(text, start).end(), ""  # type: ignore[union-attr]
    if found.re is _OPTION:
        return _QUERY_VALUE.match(text, start).end(), ""  # type: ignore[union-attr]
    in_query = found.start() > 0 and text[found.start() - 1] in "?&[" and text[start - 1] == "="
    if in_query:
        return _QUERY_VALUE.match(text, start).end(), ""  # type: ignore[union-attr]
    block = _BLOCK.match(text, start)
    line = _LINE_OF_MARKUP if markup else _LINE
    end = block.end() if block else line.match(text, start).end()  # type: ignore[union-attr]
    if block or name.lower() in _FOLDED:
        end = _INDENTED.match(text, end).end()  # type: ignore[union-attr]
    return end, ""


def _quote_end(text: str, opening: re.Match[str]) -> int:
    """Where a quoted value ends; quotes may be escaped as deep as JSON was put into JSON."""
    depth, after_twin = len(opening[1]), -1
    for quote in _QUOTE.finditer(text, opening.end()):
        escapes = len(quote[1])
        ends = escapes % 2 == 0 if depth == 0 else escapes <= depth
        if not ends or quote[2] != opening[2] or quote.end() == after_twin:
            continue
        if depth == 0 and escapes == 0 and text.startswith(quote[2], quote.end()):
            # A quote given twice is one within, as in SQL.
            after_twin = quote.end() + 1
            continue
        return _REST.match(text, quote.end()).end()  # type: ignore[union-attr]
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
