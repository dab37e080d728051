"""Rules in settings: checked at the start, with the reason and the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from audit_logging.conf import LoggingSettings
from audit_logging.patterns import RuleError, check_together
from audit_logging.rules import MAX_RULES, Rule, parse

Options = Callable[..., LoggingSettings]

GOOD: dict[str, Any] = {"match": "regex", "pattern": "^/login", "level": "metadata"}


@pytest.mark.parametrize("empty", ["", " ", "[]"])
def test_there_need_not_be_any(options: Options, empty: str) -> None:
    assert options(RULES=empty).RULES == ()
    assert options().RULES == ()


def test_from_the_environment_and_from_settings(options: Options, settings: Any) -> None:
    with_rate = {"match": "substring", "pattern": "/poll", "level": "none", "sample_rate": 0.5}
    rules = [GOOD, with_rate]
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop", "RULES": tuple(rules)}
    found = LoggingSettings({}).RULES
    assert found == options(RULES=json.dumps(rules)).RULES
    assert [rule.document() for rule in found] == rules
    assert [(rule.origin, rule.number) for rule in found] == [("settings", 1), ("settings", 2)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[", "It is not JSON"),
        ("[" * 100_000, "It is not JSON"),
        ("7", "7 is not a list"),
        (7, "7 is not a list"),
        ({"match": 1}, "is not a list"),
        (["/login"], "Rule 1: '/login' is not a rule. Write"),
        ([GOOD, GOOD | {"match": "prefix"}], "Rule 2: The match 'prefix' is not known. Use"),
        ([{"pattern": "/x", "level": "none"}], "Rule 1: No match. Use substring | regex."),
        ([GOOD | {"level": ["none"]}], "The level ['none'] is not known. Use none | metadata"),
        ([GOOD | {"pattern": ""}], "It has no pattern. Give"),
        ([GOOD | {"pattern": 7}], "It has no pattern. Give"),
        ([GOOD | {"match": "substring", "pattern": "x" * 201}], "201 characters; at most 200"),
        ([GOOD | {"pattern": "("}], "Not a regular expression"),
        ([GOOD | {"pattern": "(a+)+"}], "A repetition inside a repetition can stall"),
        ([GOOD | {"sample_rate": 2}], "The sample_rate 2 is not a share. Give"),
        ([GOOD | {"sample_rate": True}], "is not a share"),
        ([GOOD | {"sample_rate": float("nan")}], "is not a share"),
        ([GOOD | {"sample": 0.5}], "'sample' is not part of a rule. Use match, pattern"),
        ([GOOD] * (MAX_RULES + 1), "at most 200"),
        ([GOOD | {"pattern": f"a+{n}x"} for n in range(40)], "All regular expressions together"),
    ],
    ids=range(20),
)
def test_what_is_wrong_stops_the_start(
    options: Options, settings: Any, value: Any, said: str
) -> None:
    if isinstance(value, str):
        chosen = options(RULES=value)
        where = "AUDIT_LOGGING_RULES: "
    else:
        settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop", "RULES": value}
        chosen = LoggingSettings({})
        where = 'AUDIT_LOGGING["RULES"]: '
    with pytest.raises(ImproperlyConfigured) as stopped:
        chosen.enforce()
    assert said in str(stopped.value)
    assert str(stopped.value).startswith(where)
    assert [problem.setting for problem in chosen.problems()] == [where.removesuffix(": ")]


def test_costs_of_patterns_add_up() -> None:
    slow = "[a-z]*X"
    check_together([slow])
    with pytest.raises(RuleError, match=r"the costliest is \[a-z\]\*X\. Begin it with \^"):
        check_together([slow] * 4)
    # Anchored ones cost next to nothing.
    check_together([rf"^/v{n}/[^/]+$" for n in range(200)])
    check_together([None] * 200)


def test_patterns_that_cannot_begin_at_one_place_do_not_add_up() -> None:
    check_together([f"/shop{n}/.*/items" for n in range(100, 200)])
    with pytest.raises(RuleError, match="All regular expressions together"):
        check_together([f"/shop/.*/items{n}" for n in range(100, 200)])
    # Each begins where another does.
    with pytest.raises(RuleError, match="All regular expressions together"):
        check_together(["/shops/"[:n] + ".*x1" for n in range(2, 8)] * 4)


def test_a_rule_describes_itself() -> None:
    assert parse(GOOD).document() == GOOD
    assert isinstance(parse(GOOD), Rule)
