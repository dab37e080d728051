"""Card numbers in text, told from the item, order and site numbers that look much like them."""

from __future__ import annotations

import re

from .sensitive import MASK

_DIGITS = re.compile(r"(?<![0-9])[0-9](?:[ ._/\t\xa0\u2010-\u2015-]{0,3}[0-9]){11,}+")
_DIGIT_GROUP = re.compile(r"[0-9]+")
# Letters beside the digits, and beyond them a digit again; looked for this near.
_MIXED_BEFORE = re.compile(r"[0-9][A-Za-z]++\Z")
_MIXED_AFTER = re.compile(r"[A-Za-z]++[0-9]")
_NEAR = 32
# Cards are written in up to five groups; a longer row of short numbers is something else.
_CARD_GROUPS = 8
_USUAL = frozenset((" ", "-"))
_FIRST = "234568"


def mask_cards(text: str) -> str:
    """Return `text` without card numbers, written in one or in groups."""
    return _DIGITS.sub(_mask_run, text)


def are_card(digits: str) -> bool:
    """Whether a text of digits alone is masked by :func:`mask_cards`."""
    if digits.isascii() and (digits[0] not in _FIRST or not 13 <= len(digits) <= 19):
        return False
    return mask_cards(digits) != digits


def _mask_run(match: re.Match[str]) -> str:
    """Mask the card numbers in a run of digits; what stands beside one (an expiry date, an order
    number) must not hide it."""
    text = match.group()
    if text.isdecimal() and (text[0] not in _FIRST or not 13 <= len(text) <= 19):
        # One group, as item numbers and times are.
        return text
    if _in_identifier(match):
        return text
    groups = [(group.start(), group.end()) for group in _DIGIT_GROUP.finditer(text)]
    masked, done, index = "", 0, 0
    while index < len(groups):
        digits, last = "", None
        if text[groups[index][0]] not in _FIRST:
            index += 1
            continue
        for until in range(index, min(index + _CARD_GROUPS, len(groups))):
            digits += text[groups[until][0] : groups[until][1]]
            if len(digits) > 19 or not _alike(text, groups, index, until):
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


def may_be_card(parts: list[str]) -> bool:
    """Whether some of these groups of digits, one after another, are a card number; empty groups
    stand for more between two."""
    groups = [part for part in parts if part]
    for index, first in enumerate(groups):
        if first[0] not in _FIRST:
            continue
        digits = ""
        for group in groups[index : index + _CARD_GROUPS]:
            digits += group
            if len(digits) > 19:
                break
            if len(digits) >= 13 and is_card(digits, grouped=True):
                return True
    return False


def _in_identifier(match: re.Match[str]) -> bool:
    """Whether the digits are part of a longer mix of letters and digits, as in a trace id.

    Such ids are what people search for, and one in a thousand holds what looks like a card.
    """
    return bool(
        _MIXED_BEFORE.search(match.string, max(0, match.start() - _NEAR), match.start())
        or _MIXED_AFTER.match(match.string, match.end(), match.end() + _NEAR)
    )


def _alike(text: str, groups: list[tuple[int, int]], first: int, last: int) -> bool:
    """Whether groups are written as one number is: with the same between them, and in fours
    where other things (dates, fractions) are written with that too."""
    if first == last:
        return True
    between = text[groups[first][1] : groups[first + 1][0]]
    if text[groups[last - 1][1] : groups[last][0]] != between:
        return False
    return between in _USUAL or groups[first][1] - groups[first][0] == 4


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
