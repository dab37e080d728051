"""Names that stand beside their values in JSON: ``{"name": "pin", "value": …}``, a JSON Patch, an
entry of a change log, a command line in a list.

Which names and values belong together is a matter of judgement: «text» beside «name» is a secret
where the name is «password», and a review where it is «Secret Garden».
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from .quiet import TIME
from .sensitive import MASK, SAYS_NOTHING, IsSensitive, normalise_key
from .shell import password_options, shown_after, shown_option

# What an object called "card" tells without the card.
_OF_A_CARD = frozenset(("type", "brand", "scheme", "network", "last4", "count"))

_NAMES = frozenset((
    "name", "key", "k", "field", "header", "param", "parameter", "property", "label", "attribute",
    "attr", "column", "setting", "option", "variable", "var", "question", "fieldname", "keyname",
    "headername", "paramname", "parametername", "parameterkey", "propertyname", "attributename",
    "columnname", "settingname", "optionname", "variablename", "varname", "prompt",
))  # fmt: skip
#: Whole sentences stand under these; under others, several words are the name of a thing.
_SENTENCES = frozenset(("label", "question", "prompt"))
# Kinds of things more often than names.
_KINDS = frozenset(("id", "type"))
_PATHS = frozenset(("path", "pointer", "jsonpointer", "jsonpath", "fieldpath", "propertypath"))
_VALUES = frozenset((
    "value", "values", "val", "v", "newvalue", "oldvalue", "newval", "oldval", "currentvalue",
    "previousvalue", "originalvalue", "fieldvalue", "headervalue", "paramvalue", "parametervalue",
    "propertyvalue", "attributevalue", "settingvalue", "keyvalue", "stringvalue", "textvalue",
    "bytesvalue", "intvalue", "longvalue", "numbervalue", "valuestring", "plainvalue",
))  # fmt: skip
_CONTENTS = frozenset(("content",))
_SAID = frozenset(("text", "answer", "response", "reply"))
_CHANGES = frozenset(
    ("new", "old", "before", "after", "from", "to", "previous", "current", "lhs", "rhs")
)
_ALL_VALUES = _VALUES | _CONTENTS | _SAID | _CHANGES
_IN_FORMS = _VALUES | _CONTENTS
_CHANGED = _VALUES | _CHANGES
_ALL_NAMES = _NAMES | _KINDS | _PATHS | {"from"}
_NONE: frozenset[str] = frozenset()
_LONGEST_KEY = 20
# Nothing else is called so.
_PLAINLY = frozenset((
    "password", "newpassword", "oldpassword", "currentpassword", "passwd", "passphrase", "passcode",
    "pin", "otp", "cvv", "cvc", "ssn",
))  # fmt: skip
_LONGEST_NAME = 200
_STEPS = re.compile(r"[/.\[\]$'\"]+")
_LAST_STEPS = frozenset(("key", "keys", "code", "number", "no", "num", "value", "id", "word"))
_MOST_STEPS = 300
_DEEPEST = 20
_ARGUMENT = re.compile(r"(?<![\w.-])(\w{1,60}+)[ \t]{0,8}:\s{0,40}\$(\w{1,60}+)")

_MANY_DIGITS = re.compile(r"\d\D{0,60}?\d\D{0,60}?\d")
_WORDY = re.compile(r"[A-Za-z]+(?:[ _.:/-]{1,2}(?:[A-Za-z]+|[0-9]{1,2}))*+")
_SMALLEST_PIN = 1000


@lru_cache(maxsize=1024)
def _name_kind(key: str) -> str:
    folded = normalise_key(key)
    return folded if folded in _ALL_NAMES else ""


@lru_cache(maxsize=1024)
def _value_kind(key: str) -> str:
    folded = normalise_key(key)
    return folded if folded in _ALL_VALUES else ""


def is_value_key(key: str) -> bool:
    """Whether what stands under `key` is told by what stands beside it."""
    return len(key) <= _LONGEST_KEY and _value_kind(key) != ""


def is_form_value_key(key: str) -> bool:
    """Whether it is in a form or a query, too, where «from» and «text» stand for themselves."""
    return len(key) <= _LONGEST_KEY and _value_kind(key) in _IN_FORMS


def is_name_key(key: str) -> bool:
    """Whether what stands under `key` could be the name of what stands beside it."""
    return len(key) <= _LONGEST_KEY and _name_kind(key) != ""


def shown(key: str, item: Any) -> Any:
    """Return what is shown in place of `item`, which is a secret by its name."""
    if item is None or isinstance(item, bool):
        return item
    if isinstance(item, str) and item.lower() in SAYS_NOTHING:
        # An empty value tells nothing, and tells the reader that it was empty.
        return item
    if isinstance(item, dict) and normalise_key(key) == "card":
        left = {
            name: value
            if name in _OF_A_CARD and isinstance(value, (str, int)) and len(str(value)) <= 12
            else MASK
            for name, value in item.items()
        }
        return item if left == item else left
    return MASK


# -- in objects -----------------------------------------------------------------------------


def hidden_keys(node: Mapping[str, Any], is_sensitive: IsSensitive) -> Iterable[str]:
    """Return the keys of `node` whose values are secrets by a name that stands beside them."""
    values = [key for key in node if len(key) <= _LONGEST_KEY and _value_kind(key)]
    if not values:
        return ()
    told, sold = _told(node.items(), is_sensitive, in_patch="op" in node)
    if not told and not sold:
        return ()
    return [
        key
        for key in values
        if (_value_kind(key) in told or (_value_kind(key) in sold and not _is_number(node[key])))
        and not _is_source(key, node)
    ]


def hidden_in_form(pairs: Iterable[tuple[str, str]], is_sensitive: IsSensitive) -> set[str]:
    """Return the names of the fields that others tell of: ``name=password&value=…``."""
    values = {key for key, _ in pairs if is_form_value_key(key)}
    if not values:
        return values
    told, sold = _told(pairs, is_sensitive, in_patch=False)
    return {key for key in values if _value_kind(key) in told or _value_kind(key) in sold}


def _told(
    items: Iterable[tuple[str, Any]], is_sensitive: IsSensitive, *, in_patch: bool
) -> tuple[set[str], set[str]]:
    """Which values telling names tell of, and which of them only where they are no prices:
    cookies are sold, too."""
    told: set[str] = set()
    sold: set[str] = set()
    for kind, name in _names_among(items):
        if tells_of := _told_by(kind, name, is_sensitive, in_patch):
            cookies = normalise_key(name) in ("cookie", "cookies")
            (sold if cookies else told).update(tells_of)
    return told, sold


def _names_among(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Give what could be a name, and what kind of name its key says."""
    for key, name in items:
        if len(key) > _LONGEST_KEY or not (kind := _name_kind(key)):
            continue
        if type(name) is str:
            yield kind, name
        elif type(name) is list and kind in _PATHS:
            # {"path": ["user", "password"], …}
            yield kind, "/".join(step for step in name[-_DEEPEST:] if type(step) is str)
        elif type(name) is dict and kind in _NAMES:
            # {"field": {"name": "password"}, …}
            for inner, text in name.items():
                if type(text) is str and len(inner) <= _LONGEST_KEY and _name_kind(inner):
                    yield _name_kind(inner), text


def _told_by(kind: str, name: str, is_sensitive: IsSensitive, in_patch: bool) -> frozenset[str]:
    """Which values a name tells of."""
    if kind == "from" and not name.startswith("/"):
        return _NONE
    if kind in _PATHS or kind == "from":
        if _path_tells(name, is_sensitive, whole=in_patch):
            return _VALUES if kind == "from" else _CHANGED
        return _NONE
    if not is_sensitive(name):
        return _NONE
    if normalise_key(name[:_LONGEST_NAME]) in _PLAINLY:
        return _ALL_VALUES
    if kind in _KINDS:
        return _IN_FORMS
    said = len(name) <= _LONGEST_NAME and (kind in _SENTENCES or " " not in name.strip())
    return _ALL_VALUES if said else _IN_FORMS


def _path_tells(path: str, is_sensitive: IsSensitive, *, whole: bool) -> bool:
    """Whether the end of a path is a telling name; or any of its steps, where it is known to
    lead into a document, as in a JSON Patch."""
    steps = [
        step
        for step in _STEPS.split(path[-_MOST_STEPS:])
        if step and step != "-" and not step.isdecimal()
    ]
    if not steps:
        return False
    if any(map(is_sensitive, steps if whole else steps[-1:])):
        return True
    return steps[-1].lower() in _LAST_STEPS and is_sensitive("_".join(steps[-2:]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_source(key: str, node: Mapping[str, Any]) -> bool:
    """Whether it is where a JSON Patch moves something from."""
    value = node[key]
    moves = key == "from" and node.get("op") in ("move", "copy")
    return moves and isinstance(value, str) and value.startswith("/")


def hidden_variables(node: Mapping[str, Any], is_sensitive: IsSensitive) -> dict[str, Any] | None:
    """Return the variables of a GraphQL operation without those that are given to an argument
    with a telling name, ``login(password: $p)``; None where there is no such."""
    query, variables = node.get("query"), node.get("variables")
    if type(query) is not str or type(variables) is not dict or "$" not in query:
        return None
    hidden = {
        found[2]
        for found in _ARGUMENT.finditer(query)
        if found[2] in variables and is_sensitive(found[1])
    }
    if not hidden:
        return None
    return {
        name: shown(name, value) if name in hidden else value for name, value in variables.items()
    }


# -- in lists -------------------------------------------------------------------------------


def is_heading(text: Any, is_sensitive: IsSensitive) -> bool:
    """Whether `text` heads a column of secrets, or tells of the next in a list."""
    if type(text) is not str or len(text) > 60 or _MANY_DIGITS.search(text):
        return False
    return is_sensitive(text)


def hidden_in_list(items: list[Any], tells: Callable[[Any], bool]) -> list[Any]:
    """Return a list without what its own strings call a secret: ``["Authorization", "Bearer …"]``,
    ``["login", "--password", "…"]``; the list itself where there is nothing.

    :param tells: whether a string is a telling name.
    """
    pairs = len(items) % 2 == 0 and len(items) > 0 and type(items[0]) is str
    options: Mapping[str, str] = {}
    hidden = items
    for index, name in enumerate(items):
        if type(name) is not str:
            continue
        if name[:1] != "-":
            options = password_options(name) or options
        elif (new := shown_option(name, options)) != name:
            hidden = list(items) if hidden is items else hidden
            hidden[index] = new
        if index + 1 == len(items):
            break
        value = items[index + 1]
        if isinstance(value, (dict, list)):
            continue
        if name[:1] == "-":
            new = value
            if name in options:
                new = shown_after(name, value, options)
            elif tells(name) and not (isinstance(value, str) and value.startswith("--")):
                new = shown(name, value)
        elif not tells(name) or not (
            _is_worth_hiding(value) if pairs and index % 2 == 0 else _looks_secret(value)
        ):
            continue
        else:
            new = shown(name, value)
        if new is not value:
            hidden = list(items) if hidden is items else hidden
            hidden[index + 1] = new
    return hidden


def _is_worth_hiding(value: Any) -> bool:
    """Whether a value beside a telling name could be a secret at all: «session», «A» is not."""
    if isinstance(value, str):
        return len(value) > 3 or not value.isalpha()
    return not isinstance(value, (int, float)) or abs(value) >= 100


def _looks_secret(value: Any) -> bool:
    """Whether a value after a telling name is no name itself: most lists are of one kind."""
    if isinstance(value, str):
        if len(value) < 4 or TIME.fullmatch(value):
            return False
        if value.isdecimal():
            return True
        return any(map(str.isalpha, value)) and _WORDY.fullmatch(value) is None
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) >= _SMALLEST_PIN
    )
