"""Tables in text whose first line names its columns: comma-separated values and their kin."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable

from .sensitive import MASK, SAYS_NOTHING, IsSensitive

_SEPARATORS = ("\t", ",", ";", "|")
_HEADING = re.compile(r"""\s{0,4}["']?[\w .()/#-]{0,60}["']?\s{0,4}""")
_LONGEST_LINE = 8000
_LOOKED_AT = 20
_BLANK = "\ufeff \r\n"


def may_be_table(text: str) -> bool:
    """Whether `text` could be a table; where not, :func:`mask_table` changes nothing."""
    if "\n" not in text:
        return False
    first = _first_line(text)
    return any(separator in first for separator in _SEPARATORS)


def mask_table(
    text: str, is_sensitive: IsSensitive, breathe: Callable[[], None], *, sure: bool = False
) -> str:
    """Return a table without the columns whose headings tell of a secret; any other text as it is.

    :param sure: that it is a table was said by its type; else its lines have to look like one.
    """
    if not may_be_table(text):
        return text
    first = _first_line(text)
    for separator in _SEPARATORS:
        headings = first.split(separator) if separator in first else []
        if not all(_HEADING.fullmatch(heading) for heading in headings):
            continue
        columns = [n for n, heading in enumerate(headings) if is_sensitive(heading.strip(" \"'"))]
        if columns and (sure or _looks_like_one(text, separator, len(headings))):
            return _without(text, separator, columns, breathe)
    return text


def _first_line(text: str) -> str:
    start = len(text) - len(text.lstrip(_BLANK))
    end = text.find("\n", start, start + _LONGEST_LINE)
    return text[start:end].rstrip("\r") if end >= 0 else ""


def _looks_like_one(text: str, separator: str, width: int) -> bool:
    """Whether half of the lines that follow have as many fields; prose with commas has not."""
    lines = text.lstrip(_BLANK)[: _LONGEST_LINE * 4].split("\n", _LOOKED_AT + 1)[1:]
    filled = [line for line in lines[:_LOOKED_AT] if line.strip()]
    alike = sum(line.count(separator) >= width - 1 for line in filled)
    return alike > 0 and alike * 2 >= len(filled)


def _without(text: str, separator: str, columns: Iterable[int], breathe: Callable[[], None]) -> str:
    start = len(text) - len(text.lstrip(_BLANK))
    written = io.StringIO(newline="")
    end = "\r\n" if "\r\n" in text else "\n"
    writer = csv.writer(written, delimiter=separator, lineterminator=end)
    changed = False
    try:
        rows = csv.reader(io.StringIO(text[start:], newline=""), delimiter=separator)
        for number, row in enumerate(rows):
            if number % 50 == 0:
                breathe()
            for column in columns if number else ():
                if column < len(row) and row[column].strip().lower() not in SAYS_NOTHING:
                    row[column] = MASK
                    changed = True
            writer.writerow(row)
    except csv.Error:
        # A field beyond what the reader takes, or a stray end of line: nobody knows the columns.
        return f"{_first_line(text)}{end}{MASK}{end}"
    return text[:start] + written.getvalue() if changed else text
