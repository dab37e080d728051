"""Secrets in markup: elements and form fields with telling names, and cells beside such names."""

from __future__ import annotations

import re
from collections.abc import Callable

from .sensitive import MASK, IsSensitive

_START_TAG = re.compile(r"<([^\W\d][\w.:-]{0,100}+)((?:\s[^<>]*+)?)>")
_NAME_ATTRIBUTE = re.compile(
    r"""(?i)\b(?:name|id|key|k|property|type)\s{0,4}=\s{0,4}["']?([\w.-]+)"""
)
_VALUE_ATTRIBUTE = re.compile(
    r"""(?i)(\b(?:value|content|val|v)\s{0,4}=\s{0,4})("[^"]*"|'[^']*'|[^\s"'<>]+)"""
)
_EMPTY_ELEMENTS = frozenset(("input", "meta", "param", "link", "img"))
# What stands in comments and character data closes nothing.
_PARTS = re.compile(
    r"<!--.*?(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<(/?)([^\W\d][\w.:-]{0,100}+)", re.DOTALL
)
# An element that holds a name alone, and the one after it.
_CELL = re.compile(
    r"<(?:th|td|dt|key|name|string|label|code)\b[^<>]*+>\s{0,40}"
    r"""["']?([\w.-]{1,60}+(?: [\w.-]{1,40}+){0,2}+)["']?:?\s{0,40}</[a-z]{1,10}>\s{0,200}"""
    r"<(?!th\b)([a-z][\w.:-]{0,40})\b[^<>]*+>",
    re.IGNORECASE,
)


def mask_markup(text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]) -> str:
    """Mask the contents of elements, of named form fields, and of cells, that hold a secret.

    :param breathe: called again and again during long work.
    """
    return _mask_cells(_mask_elements(text, is_sensitive, breathe), is_sensitive, breathe)


def _mask_elements(text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]) -> str:
    kept, done = [], 0
    for number, tag in enumerate(_START_TAG.finditer(text), 1):
        if number % 50 == 0:
            breathe()
        if tag.start() < done:
            continue
        name, attributes = tag.groups()
        field = any(is_sensitive(named) for named in _NAME_ATTRIBUTE.findall(attributes))
        if not field and not is_sensitive(name.rpartition(":")[2]):
            continue
        shown = attributes
        if field:
            shown = _VALUE_ATTRIBUTE.sub(lambda match: f'{match[1]}"{MASK}"', attributes)
        kept += [text[done : tag.start()], f"<{name}{shown}>"]
        done = tag.end()
        if not attributes.endswith("/") and name.lower() not in _EMPTY_ELEMENTS:
            end = _element_end(text, name, done)
            if text[done:end].strip():
                kept.append(MASK)
                done = end
    return "".join([*kept, text[done:]]) if kept else text


def _mask_cells(text: str, is_sensitive: IsSensitive, breathe: Callable[[], None]) -> str:
    kept, done = [], 0
    for number, cell in enumerate(_CELL.finditer(text), 1):
        if number % 50 == 0:
            breathe()
        if cell.end() < done or not is_sensitive(cell[1]):
            continue
        end = _element_end(text, cell[2], cell.end())
        if text[cell.end() : end].strip():
            kept += [text[done : cell.end()], MASK]
            done = end
    return "".join([*kept, text[done:]]) if kept else text


def _element_end(text: str, name: str, start: int) -> int:
    """Where the element is closed, or the end of the text: then nobody knows where it ends."""
    depth = 1
    for part in _PARTS.finditer(text, start):
        if part[2] == name:
            depth += -1 if part[1] else 1
        if depth == 0:
            return part.start()
    return len(text)
