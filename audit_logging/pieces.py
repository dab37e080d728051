"""Long texts in pieces: one pattern over a long text holds the interpreter for as long as it takes.

A text may be cut only where no match of the pattern can lie across the cut: before a character
that the pattern takes nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache

#: Characters that a piece has, about: a pattern needs some 20 ns for each.
PIECE = 8192


@cache
def _any_of(marks: str) -> re.Pattern[str]:
    return re.compile(f"[{re.escape(marks)}]")


def cuts(text: str, marks: str) -> Iterator[tuple[int, int]]:
    """Give beginning and end of each piece of `text`; each but the first begins with one of
    `marks`. Where there is none, pieces are longer."""
    start, length = 0, len(text)
    while length - start > PIECE:
        end = max(text.rfind(mark, start + 1, start + PIECE) for mark in marks)
        if end < 0:
            found = _any_of(marks).search(text, start + PIECE)
            if found is None:
                break
            end = found.start()
        yield start, end
        start = end
    yield start, length


def by_pieces(
    text: str, marks: str, change: Callable[[str], str], breathe: Callable[[], None]
) -> str:
    """Return `text` with each of its pieces changed."""
    if len(text) <= PIECE:
        return change(text)
    changed = []
    for start, end in cuts(text, marks):
        changed.append(change(text[start:end]))
        breathe()
    return "".join(changed)


def matches(
    pattern: re.Pattern[str], text: str, marks: str, breathe: Callable[[], None]
) -> Iterator[re.Match[str]]:
    """Give the matches of `pattern` as finditer() would.

    :param marks: characters that nothing but the white space at a match's end may hold, if that.
    """
    if len(text) <= PIECE:
        yield from pattern.finditer(text)
        return
    done = 0
    for start, end in cuts(text, marks):
        breathe()
        while (found := pattern.search(text, max(start, done), end)) is not None:
            if found.end() == end:
                # The white space at its end may go on.
                found = pattern.match(text, found.start()) or found
            yield found
            done = max(found.end(), found.start() + 1)
            if done >= end:
                break


def short_matches(
    pattern: re.Pattern[str], text: str, longest: int, breathe: Callable[[], None]
) -> Iterator[re.Match[str]]:
    """Give the matches of `pattern` as finditer() would, where none has more than `longest`
    characters."""
    done = 0
    for start in range(0, max(1, len(text)), PIECE):
        end = start + PIECE
        while done < end:
            found = pattern.search(text, max(start, done), end + longest)
            if found is None or found.start() >= end:
                break
            yield found
            done = max(found.end(), found.start() + 1)
        breathe()
