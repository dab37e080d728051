"""Endpoint rules: which paths they are about, and what they say is recorded."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .patterns import (
    CURE,
    MATCHED_PATH,
    MAX_PATTERN,
    MOST_TOGETHER,
    RuleError,
    Together,
    check_together,
    compile_pattern,
)

logger = logging.getLogger(__name__)

Level = Literal["none", "metadata", "request", "request_response"]
Match = Literal["substring", "regex"]
Origin = Literal["admin", "settings"]

#: More would be tried one after the other in each request.
MAX_RULES = 200

_KEYS = ("match", "pattern", "level", "sample_rate")


@dataclass(frozen=True, slots=True)
class Rule:
    """An endpoint rule: the first whose pattern matches a path decides its level.

    :ivar sample_rate: share of the traces of these paths that is recorded; None: the service's.
    :ivar origin: who made the rule.
    :ivar number: its place among the rules of that origin, from 1.
    """

    match: Match
    pattern: str
    level: Level
    compiled: re.Pattern[str] | None = None
    sample_rate: float | None = None
    origin: Origin = "admin"
    number: int = 0

    def matches(self, path: str) -> bool:
        """Whether this rule is about `path`."""
        if self.compiled is None:
            return self.pattern in path
        return self.compiled.search(path[:MATCHED_PATH]) is not None

    def document(self) -> dict[str, Any]:
        """Return the rule as JSON takes it; :func:`parse` reads it."""
        found: dict[str, Any] = {
            "match": self.match,
            "pattern": self.pattern,
            "level": self.level,
        }
        if self.sample_rate is not None:
            found["sample_rate"] = self.sample_rate
        return found


def parse(item: Any, origin: Origin = "admin", number: int = 0) -> Rule:
    """Return the rule that a mapping describes.

    :raises RuleError: it cannot be used; the message says why, and what to do.
    """
    if not isinstance(item, Mapping):
        raise RuleError(
            f"{item!r:.100} is not a rule. Write "
            '{"match": "substring", "pattern": "/orders", "level": "metadata"}.'
        )
    match, pattern, level = (item.get(name) for name in _KEYS[:3])
    _one_of("match", match, get_args(Match))
    if not isinstance(pattern, str) or not pattern:
        raise RuleError("It has no pattern. Give a part of the path, or a regular expression.")
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"The pattern has {len(pattern)} characters; at most {MAX_PATTERN} do.")
    _one_of("level", level, get_args(Level))
    rate = item.get("sample_rate")
    if rate is not None and (
        isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1
    ):
        raise RuleError(f"The sample_rate {rate!r:.50} is not a share. Give a number from 0 to 1.")
    compiled = compile_pattern(pattern) if match == "regex" else None
    return Rule(match, pattern, level, compiled, rate, origin, number)  # type: ignore[arg-type]


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        has = f"The {name} {value!r:.50} is not known." if value is not None else f"No {name}."
        raise RuleError(f"{has} Use {' | '.join(choices)}.")


def usable(items: Iterable[Any]) -> Iterator[Rule]:
    """Give the admin's rules that can be used; the others are logged and left out.

    So are those that are too many, or too slow beside those before them: they are tried in each
    request, and who made them may have had another version, or no form that says so.
    """
    together, taken, left = Together(), 0, []
    for number, item in enumerate(items, 1):
        try:
            rule = parse(item, "admin", number)
        except (RuleError, TypeError) as error:
            logger.warning("endpoint rule %.300r is left out: %s", item, error)
            continue
        if taken == MAX_RULES or not together.take(rule.compiled and rule.pattern):
            left.append(rule)
            continue
        taken += 1
        yield rule
    if left:
        logger.warning(
            "%s endpoint rules are left out, first number %s, %.200r: at most %s are tried, and "
            "together they may take no more than %.0f ms on any path. %s",
            len(left),
            left[0].number,
            left[0].pattern,
            MAX_RULES,
            MOST_TOGETHER / 1e6,
            CURE,
        )


def from_option(raw: Any) -> tuple[Rule, ...]:
    """Return the rules of the option RULES: a list of dicts, or the same as JSON.

    :raises ValueError: saying which rule is wrong, why, and what to do.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.strip() else []
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"It is not JSON: {error}. Write "
                '[{"match": "substring", "pattern": "/orders", "level": "metadata"}].'
            ) from None
    if not isinstance(raw, (list, tuple)):
        raise ValueError(f"{raw!r:.100} is not a list. Give a list of rules.")
    if len(raw) > MAX_RULES:
        raise ValueError(f"{len(raw)} rules; at most {MAX_RULES} are tried. Join some.")
    found = []
    for number, item in enumerate(raw, 1):
        try:
            unknown = sorted(set(item) - set(_KEYS)) if isinstance(item, Mapping) else []
            if unknown:
                raise RuleError(f"{unknown[0]!r} is not part of a rule. Use {', '.join(_KEYS)}.")
            found.append(parse(item, "settings", number))
        except (RuleError, TypeError) as error:
            raise ValueError(f"Rule {number}: {error}") from None
    check_together(rule.compiled and rule.pattern for rule in found)
    return tuple(found)
