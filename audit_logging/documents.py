"""JSON documents without their secrets: at any depth, and in strings that are JSON themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from math import isfinite
from typing import Any

from .beside import hidden_in_list, hidden_keys, hidden_variables, is_heading, is_name_key, shown
from .cards import are_card, is_card
from .names import Names
from .quiet import SHORT, loud
from .sensitive import MASK

try:
    # Where it is installed: it halves the work on a body with a secret.
    import msgspec

    _quick_decode = msgspec.json.Decoder().decode
    _quick_encode = msgspec.json.Encoder().encode
except Exception:  # noqa: BLE001 - whatever is wrong with it, it is not needed
    _quick_decode = _quick_encode = None  # type: ignore[assignment]

#: Nesting and size of JSON that is still looked through; beyond it the body is left out.
MAX_DEPTH = 64
MAX_NODES = 200_000

BLANK = "\ufeff \t\r\n"
#: What a string that is JSON itself begins with, where it could hold anything.
OPENING = ("{", "[", '"')
# Keys of one row, beside a list that names its cells.
_ROWS = ("row", "data", "record", "args", "params", "value", "values", "val", "v", "content")
_ROW_KEYS = frozenset(written for key in _ROWS for written in (key, key.capitalize(), key.upper()))
_MOST_COLUMNS = 1000
# Depth to which documents without secrets are told quickly.
_GLANCE = 24
# How many levels below the top are glanced at one by one where the whole is not clean.
_GLANCES = 2
_MOST_TOGETHER = 16_384
_MOST_DIGITS = 4300
_SMALLEST_CARD = 10**11


#: An object, a key of it, and what is shown there instead of its value.
Secret = tuple[dict[str, Any], str, Any]


class TooComplex(Exception):
    """Deeper or larger than is looked through."""


class Task:
    """One body's worth of work.

    :ivar nodes: how many more nodes are looked through; counted down.
    :ivar loud: the strings of the present document that need a closer look; None: all.
    """

    __slots__ = ("loud", "nodes")

    def __init__(self) -> None:
        self.nodes = MAX_NODES
        self.loud: set[str] | None = None


def _bounded_int(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number of absurd length")
    return int(digits)


def _finite_float(digits: str) -> float | str:
    """A number beyond all floats stays the text that it is: JSON has no infinity."""
    value = float(digits)
    return value if isfinite(value) else digits


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder(parse_constant=str, parse_float=_finite_float)
_decode_bounded = json.JSONDecoder(
    parse_constant=str, parse_float=_finite_float, parse_int=_bounded_int
)


def _parse(text: str) -> Any:
    """Return the JSON document in `text`.

    :raises ValueError: not JSON, or a number of absurd length.
    :raises RecursionError: nested too deep for the parser.
    """
    if _quick_decode is not None:
        try:
            return _quick_decode(text.strip(BLANK))
        except (ValueError, RecursionError):
            # It knows fewer things as JSON: halves of surrogate pairs, NaN, 1e400.
            pass
    # A service may have lifted the interpreter's bound, and reading digits takes their square.
    limit = sys.get_int_max_str_digits()
    decoder = _decode if 0 < limit <= _MOST_DIGITS else _decode_bounded
    text = text.strip(BLANK)
    try:
        document, end = decoder.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration as stop:
        raise ValueError("not JSON") from stop
    if end != len(text):
        raise ValueError("more than JSON")
    return document


def _written(document: Any) -> str:
    """Return `document` as JSON, without blanks."""
    if _quick_encode is not None:
        try:
            return _quick_encode(document).decode()
        except (ValueError, TypeError, OverflowError, RecursionError):
            # Halves of surrogate pairs again, and numbers beyond 64 bits.
            pass
    return _encode(document)


def _gives_keys_once(text: str, colons: int) -> bool:
    """Whether no object in `text` gives a key twice, of which a parser keeps but the last.

    :param colons: how many colons there are in the document as parsed: one for each key, and
        those in strings.
    """
    # Those of a key that was lost are in `text` still.
    return text.count(":") == colons and ("\\" not in text or "\\u003" not in text)


class Documents:
    """Takes secrets out of JSON.

    :param names: tells which names tell.
    :param text: returns a string that is no JSON without secrets.
    :param breathe: called again and again during long work.
    """

    def __init__(
        self, names: Names, text: Callable[[str], str], breathe: Callable[[], None]
    ) -> None:
        self._names = names
        self._text = text
        self._breathe = breathe

    def redact(self, text: str) -> str | None:
        """Return `text` itself when there is nothing to redact, a new text, or None if it is not
        JSON that can be looked through."""
        try:
            document = _parse(text)
            self._breathe()
            secrets: list[Secret] = []
            colons = self._colons_of_clean(document, secrets)
            if colons is not None and not secrets and _gives_keys_once(text, colons):
                return text
            if colons is not None and secrets:
                for node, key, instead in secrets:
                    node[key] = instead
                return _written(document)
            redacted = self._whole(document, MAX_DEPTH, Task())
            repeated = redacted is document and _repeats(text)
        except (ValueError, RecursionError, TooComplex):
            return None
        # A key given twice lost its first value when parsed: nobody has looked at that one.
        if redacted is document and not repeated:
            return text
        self._breathe()
        return _written(redacted)

    # -- at a glance ----------------------------------------------------------------------

    def _colons_of_clean(self, document: Any, secrets: list[Secret] | None = None) -> int | None:
        """Return how many colons a text of `document` has if there is certainly nothing to redact
        in it, but for what a key given twice may have hidden; None: a closer look is due.

        :param secrets: takes texts and numbers that are secrets by their own key, and by nothing
            else; without it, one is reason for a closer look, too.
        """
        plain, breathe = self._names.plain, self._breathe
        texts: list[str] = []
        numbers: list[int | float] = []
        waiting = colons = seen = paused = 0
        top = [document]
        level: list[Any] = [top]
        grid = False
        for _ in range(_GLANCE):
            below: list[Any] = []
            for node in level:
                values = node
                if type(node) is dict:
                    colons += len(node)
                    values = node.values()
                    if not plain.issuperset(node):
                        found = self._secrets_of(node)
                        if found is None or (found and secrets is None):
                            return None
                        if found and secrets is not None:
                            secrets += [(node, key, instead) for key, instead in found.items()]
                            values = [node[key] for key in node if key not in found]
                        colons += "".join(node).count(":")
                    if not grid and not _ROW_KEYS.isdisjoint(node):
                        # A flat one: {"columns": [{"name": "pin"}], "row": [1234]}
                        grid = any(type(node[key]) is list for key in _ROW_KEYS.intersection(node))
                else:
                    if self._may_be_headed(node):
                        return None
                    if node is not top and not grid:
                        grid = any(type(item) is list for item in node)
                for value in values:
                    kind = type(value)
                    if kind is str:
                        if not value.isalnum():
                            texts.append(value)
                            waiting += len(value)
                        elif len(value) >= SHORT:
                            if not value.isdecimal():
                                texts.append(value)
                                waiting += len(value)
                            elif are_card(value):
                                return None
                    elif kind is dict or kind is list:
                        below.append(value)
                    elif (
                        kind is int or kind is float
                    ) and not -_SMALLEST_CARD < value < _SMALLEST_CARD:
                        numbers.append(value)
                seen += len(node)
                if waiting > _MOST_TOGETHER:
                    if not self._are_clean(texts):
                        return None
                    colons += "".join(texts).count(":")
                    texts, waiting = [], 0
                if seen - paused > 100:
                    breathe()
                    paused = seen
            if not below:
                break
            level = below
        else:
            return None
        if seen >= MAX_NODES:
            return None
        if grid and _any_heading(document, self._is_heading, breathe):
            return None
        if not self._are_clean(texts) or any(map(_is_card_number, numbers)):
            return None
        colons += "".join(texts).count(":")
        return colons

    def _secrets_of(self, node: dict[str, Any]) -> dict[str, Any] | None:
        """Return what is shown instead of texts and numbers that are secrets by their own key;
        None: a closer look is due."""
        names, told = self._names, False
        secrets: dict[str, Any] = {}
        for key in node:
            if key in names.plain:
                continue
            if key in names.told or names.is_told(key):
                told = True
                continue
            if names.is_plain(key):
                continue
            if loud([key], names):
                return None
            if names.is_sensitive(key):
                value = node[key]
                instead = shown(key, value)
                if instead is not value:
                    if type(value) is not str and type(value) is not int:
                        return None
                    secrets[key] = instead
        if secrets and "variables" in node:
            # A query, say, which tells of those.
            return None
        return None if told and hidden_keys(node, names.is_sensitive) else secrets

    def _may_be_headed(self, node: list[Any]) -> bool:
        """Whether a list could hold a name that tells of what stands elsewhere."""
        for value in node:
            if type(value) is str:
                if value not in self._names.plain and (self._is_heading(value) or value[:1] == "-"):
                    return True
            elif type(value) is list and any(type(cell) is str for cell in value):
                return True
        return False

    def _are_clean(self, texts: list[str]) -> bool:
        for text in loud(texts, self._names):
            self._breathe()
            if text.lstrip(BLANK)[:1] in OPENING or self._text(text) != text:
                return False
        return True

    # -- node by node ---------------------------------------------------------------------

    def _whole(self, document: Any, depth: int, task: Task) -> Any:
        """Walk a document of its own: the body's, or one that a string holds."""
        before, task.loud = task.loud, None
        redacted = self.walk(document, depth, task)
        task.loud = before
        return redacted

    def _loud(self, document: Any) -> set[str]:
        found: set[str] = set()
        texts: list[str] = []
        waiting = 0
        containers = [document]
        while containers:
            node = containers.pop()
            values = node
            if type(node) is dict:
                values = node.values()
                texts += [key for key in node if key not in self._names.plain]
            for value in values:
                kind = type(value)
                if kind is str:
                    texts.append(value)
                    waiting += len(value)
                elif kind is dict or kind is list:
                    containers.append(value)
            if waiting > _MOST_TOGETHER or len(texts) > 100:
                found.update(loud(texts, self._names))
                texts, waiting = [], 0
                self._breathe()
        found.update(loud(texts, self._names))
        return found

    def walk(self, value: Any, depth: int, task: Task) -> Any:
        """Return `value` itself when nothing in it is redacted, else a redacted copy.

        :param depth: how much deeper it may go.
        :raises TooComplex: that, or what the task allows, is used up.
        """
        task.nodes -= 1
        if depth < 0 or task.nodes < 0:
            raise TooComplex
        if task.nodes % 100 == 0:
            self._breathe()
        if isinstance(value, str):
            return self.string(value, depth, task)
        if isinstance(value, (dict, list)):
            # What is unclean is mostly so in one place: elsewhere a glance will do. Not at every
            # depth, as each is at all below; further down the strings are looked at together.
            if depth >= MAX_DEPTH - _GLANCES:
                if depth < MAX_DEPTH and self._colons_of_clean(value) is not None:
                    return value
            elif task.loud is None:
                task.loud = self._loud(value)
                redacted = self._container(value, depth, task)
                task.loud = None
                return redacted
            return self._container(value, depth, task)
        if isinstance(value, (int, float)):
            return MASK if _is_card_number(value) else value
        return value

    def _container(self, value: Any, depth: int, task: Task) -> Any:
        if isinstance(value, dict):
            return self._object(value, depth, task)
        hidden = self._hidden_in_list(value)
        items = [self.walk(item, depth - 1, task) for item in hidden]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else items

    def string(self, value: str, depth: int, task: Task) -> str:
        """Return a string redacted, as JSON if it is that; `value` itself if nothing is.

        :raises TooComplex: as :meth:`walk`.
        """
        if len(value) < 5:
            return value
        if not (loud([value], self._names) if task.loud is None else value in task.loud):
            return value
        stripped = value.lstrip(BLANK)
        if stripped[:1] not in OPENING:
            return _keep(value, self._text(value))
        if depth <= 0:
            raise TooComplex
        try:
            document = _parse(stripped)
            redacted = self._whole(document, depth - 1, task)
            repeated = redacted is document and _repeats(stripped)
        except RecursionError:
            raise TooComplex from None
        except ValueError:
            # Not JSON after all: a string like any other, but one that may hold broken JSON.
            return _keep(value, self._text(value))
        if redacted is not document or repeated:
            return _written(redacted)
        return value

    def _object(self, value: dict[str, Any], depth: int, task: Task) -> dict[str, Any]:
        changed = False
        new: dict[str, Any] = {}
        hidden = hidden_keys(value, self._names.is_sensitive)
        tables = self._tables(value)
        if (variables := hidden_variables(value, self._names.is_sensitive)) is not None:
            tables["variables"] = variables
        for key, item in value.items():
            kept = key if len(key) < 5 else self.string(key, depth - 1, task)
            if key in hidden or self._names.is_sensitive(key):
                redacted = shown(key, item)
            else:
                redacted = self.walk(tables.get(key, item), depth - 1, task)
            changed = changed or redacted is not item or kept is not key
            new[kept] = redacted
        return new if changed else value

    # -- names that stand beside -----------------------------------------------------------

    def _is_heading(self, text: Any) -> bool:
        return is_heading(text, self._names.is_sensitive)

    def _hidden_in_list(self, value: list[Any]) -> list[Any]:
        """Return a list without what its own strings call a secret: the columns that its first
        row names, or a value after its name."""
        first = value[0] if len(value) > 1 else None
        if type(first) is list:
            return self._without_columns(value, self._columns(first))
        return hidden_in_list(value, self._is_heading)

    def _tables(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return the lists in an object of which another list of it heads columns of secrets, by
        their keys, without these: ``{"columns": ["user", "pin"], "rows": [["bob", 1234]]}``."""
        lists = {key: item for key, item in value.items() if type(item) is list and item}
        if not lists:
            return {}
        heads = dict(lists)
        for key, item in value.items():
            if type(item) is dict:
                # {"schema": {"fields": […]}, "rows": […]}
                heads |= {f"{key}.{n}": head for n, head in item.items() if type(head) is list}
        hidden: dict[str, Any] = {}
        for key, item in heads.items():
            columns = self._columns(item)
            for other, rows in lists.items() if columns else ():
                if other == key:
                    continue
                rows = hidden.get(other, rows)
                if other in _ROW_KEYS and not any(type(row) is list for row in rows):
                    hidden[other] = self._without_cells(rows, columns)
                else:
                    hidden[other] = self._without_columns(rows, columns)
        return hidden

    def _columns(self, headings: list[Any]) -> dict[int, str]:
        """Which columns hold secrets, and what they are called."""
        found: dict[int, str] = {}
        for index, heading in enumerate(headings[:_MOST_COLUMNS]):
            for name in _names_in(heading):
                if self._is_heading(name):
                    found[index] = name
        return found

    def _without_columns(self, rows: list[Any], columns: dict[int, str]) -> list[Any]:
        if not columns:
            return rows
        hidden = [self._without_cells(row, columns) if type(row) is list else row for row in rows]
        same = all(new is old for new, old in zip(hidden, rows, strict=True))
        return rows if same else hidden

    def _without_cells(self, row: list[Any], columns: dict[int, str]) -> list[Any]:
        hidden = row
        for index, name in columns.items():
            # The row of headings itself.
            if index < len(row) and row[index] != name:
                new = shown(name, row[index])
                if new is not row[index]:
                    hidden = list(row) if hidden is row else hidden
                    hidden[index] = new
        return hidden


def _names_in(heading: Any) -> list[Any]:
    """What a column is called: by its heading, or by an object that describes it."""
    if type(heading) is not dict:
        return [heading]
    return [name for key, name in heading.items() if is_name_key(key)]


def _any_heading(
    document: Any, is_heading: Callable[[Any], bool], breathe: Callable[[], None]
) -> bool:
    """Whether some object in `document` describes a column of secrets."""
    waiting = [document]
    seen = paused = 0
    while waiting:
        node = waiting.pop()
        seen += 1 + len(node)
        if seen - paused > 100:
            breathe()
            paused = seen
        if type(node) is dict:
            if any(map(is_heading, _names_in(node))):
                return True
            node = node.values()
        waiting += [item for item in node if type(item) is dict or type(item) is list]
    return False


def _is_card_number(value: int | float) -> bool:
    if not _SMALLEST_CARD < abs(value) < 10**19:
        return False
    return value == int(value) and is_card(str(abs(int(value))))


def _keep(old: str, new: str) -> str:
    """Return `old` when equal, so that identity tells whether something changed."""
    return old if old == new else new


def _repeats(text: str) -> bool:
    """Whether some object in `text`, which is JSON, gives a key twice."""
    repeated = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal repeated
        built = dict(items)
        repeated = repeated or len(built) != len(items)
        return built

    json.loads(text.strip(BLANK), object_pairs_hook=pairs)
    return repeated
