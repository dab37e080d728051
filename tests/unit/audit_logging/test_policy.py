"""Policy: flags and rules decide; a bad one costs itself alone; no rule can stall a request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_logging import policy
from audit_logging.conf import LoggingSettings
from audit_logging.models import CaptureFlags, EndpointRule
from audit_logging.patterns import MATCHED_PATH, RuleError, check_together, compile_pattern
from audit_logging.policy import (
    Policy,
    Rule,
    from_base,
    from_document,
    from_settings,
    overlay,
)  # fmt: skip
from audit_logging.rules import MAX_RULES

Options = Callable[..., LoggingSettings]


def rule(match: Any, pattern: str, level: Any) -> Rule:
    return Rule(match, pattern, level, compile_pattern(pattern) if match == "regex" else None)


def test_the_first_rule_that_matches_decides() -> None:
    flags = Policy(
        max_body_bytes=10,
        rules=(
            rule("regex", r"^/v\d+/secret", "none"),
            rule("substring", "/v1/", "metadata"),
            rule("substring", "/v1/orders", "request_response"),
            rule("substring", "/v2/", "request"),
        ),
    )
    assert flags.decide("/v1/secret/x").skip == "rule"
    metadata = flags.decide("/v1/orders")
    assert (metadata.skip, metadata.request_body, metadata.response_body) == (None, False, False)
    request = flags.decide("/v2/orders")
    assert (request.request_body, request.response_body) == (True, False)
    other = flags.decide("/v3/orders")
    assert (other.request_body, other.response_body, other.max_body_bytes) == (True, True, 10)


def test_flags() -> None:
    assert Policy(enabled=False).decide("/x").skip == "flag"
    assert not Policy(response_bodies=False).decide("/x").response_body
    assert Policy(level="none").decide("/x").skip == "rule"


@pytest.mark.parametrize(
    ("path", "skipped"),
    [
        ("/health", True),
        ("/health/live", True),
        ("/healthy", False),
        ("/internal", True),
        ("/internal/jobs", True),
        ("/internals", False),
        ("/", True),
        ("/api/health", False),
    ],
)
def test_excluded_paths_hold_for_all_below_them(options: Options, path: str, skipped: bool) -> None:
    flags = from_settings(options(EXCLUDE_PATHS="/health,/internal/,/"))
    assert (flags.decide(path).skip == "excluded") is skipped


@given(st.integers(1, 2**128 - 1), st.floats(0, 1))
def test_sampling_is_the_same_everywhere_for_a_trace(trace: int, rate: float) -> None:
    traceparent = f"00-{trace:032x}-00f067aa0ba902b7-01"
    first = Policy(sample_rate=rate).decide("/a", traceparent).skip
    assert first in (None, "sampled")
    assert {Policy(sample_rate=rate).decide("/b", traceparent).skip for _ in range(3)} == {first}
    if rate == 1 or first is None:
        assert Policy(sample_rate=1.0).decide("/c", traceparent).skip is None


def test_sampling_keeps_about_its_share() -> None:
    flags = Policy(sample_rate=0.25)
    kept = sum(flags.decide("/x", "no trace").skip is None for _ in range(4000))
    assert 800 < kept < 1200
    assert Policy(sample_rate=0.0).decide("/x").skip == "sampled"


def test_a_trace_id_of_zeros_or_of_nonsense_is_none() -> None:
    flags = Policy(sample_rate=0.5)
    for trace in ("0" * 32, "g" * 32, "-" * 32):
        skips = {flags.decide("/x", f"00-{trace}-00f067aa0ba902b7-01").skip for _ in range(200)}
        # Left to chance: a caller cannot have itself recorded, or not, by sending rubbish.
        assert skips == {None, "sampled"}


def test_a_rule_has_a_rate_of_its_own() -> None:
    noisy = {"match": "substring", "pattern": "/poll", "level": "metadata", "sample_rate": 0}
    money = {"match": "substring", "pattern": "/pay", "level": "request", "sample_rate": 1.0}
    flags = overlay(Policy(sample_rate=0.0), {"rules": [noisy, money]})
    assert flags.decide("/poll").skip == "sampled"
    assert flags.decide("/pay").request_body
    assert flags.decide("/other").skip == "sampled"


def test_a_decision_is_looked_up_and_not_made() -> None:
    flags = Policy(rules=(rule("substring", "/a", "request"),), excluded=("/health",))
    for path in ("/a", "/b", "/health/x"):
        assert flags.decide(path) is flags.decide(path)


def test_rules_of_the_admin_come_before_those_of_the_settings(options: Options) -> None:
    shipped = [
        {"match": "regex", "pattern": "^/login", "level": "metadata"},
        {"match": "substring", "pattern": "/orders", "level": "none"},
    ]
    from_release = options(RULES=json.dumps(shipped))
    assert from_settings(from_release).decide("/orders").skip == "rule"
    admins = {"match": "substring", "pattern": "/orders", "level": "request"}
    flags = from_document({"rules": [admins]}, from_release)
    assert [(item.origin, item.number) for item in flags.rules] == [
        ("admin", 1), ("settings", 1), ("settings", 2),
    ]  # fmt: skip
    assert flags.decide("/orders").request_body
    # What the admin says nothing about is as the release has it.
    assert not flags.decide("/login").request_body


def test_why_is_told_by_the_same_code() -> None:
    flags = overlay(
        Policy(excluded=("/health",), max_body_bytes=9),
        {
            "flags": {"sample_rate": 0.5},
            "rules": [{"match": "substring", "pattern": "/a", "level": "none"}],
        },
    )
    why = flags.explain("/a/b")
    assert (why.verdict.cause, why.decision.skip) == ("rule", "rule")
    assert why.verdict.rule is flags.rules[0]
    assert flags.explain("/health/x").verdict.prefix == "/health"
    low, high = (
        "00-" + "0" * 18 + digits + "-00f067aa0ba902b7-01" for digits in ("1" * 14, "f" * 14)
    )
    assert (flags.explain("/b", low).traced, flags.explain("/b", low).decision.skip) == (True, None)
    assert flags.explain("/b", high).decision.skip == "sampled"
    assert not flags.explain("/b").traced
    assert Policy(enabled=False).explain("/b").verdict.cause == "flag"


def test_settings_told_by_another_process_make_the_same_policy(options: Options) -> None:
    told = from_settings(
        options(LEVEL="request", SAMPLE_RATE="0.5", EXCLUDE_PATHS="/a", RULES=json.dumps(
            [{"match": "regex", "pattern": "^/x", "level": "none", "sample_rate": 0.5}]
        ))
    )  # fmt: skip
    assert from_base(json.loads(json.dumps(told.base()))) == told
    for damaged in ({}, told.base() | {"level": "most"}, told.base() | {"rules": [7]},
                    told.base() | {"max_body_bytes": "x"}):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            from_base(damaged)


# -- patterns ----------------------------------------------------------------------------------

REFUSED = [
    "(a+)+", "(a*)*b", "(a|aa)+$", "(a|a)*b", "(a|a?)+b", "(a?a?)+$", "(.|a)+b", r"(\w+\s?)*$",
    r"(a)\1+", "[^/]*a.*b", ".+.*.*x", "^a*a*a*$", "^(a*)(a*)(a*)$", "(?:/[a-z]+)+$", "(", "[z-a]",
    "a" * 201, "(?:(?:a{1,9}){1,9}){1,9}b", "(x+x+)+y", "((a{2,}))+b",
    "(?i)^.*a.*?X", "^.*a.*?b", "(?i)[a-z]*x", r"\w*$x", "^(.*)(.*)Z", "^.*(?:a.*)?b",
    "a*" + "a" * 150 + "b",
]  # fmt: skip
ACCEPTED = [
    r"^/iac/v1/[^/]+/items/[^/]+/prices/[^/]+$", "/orders", r"/v\d+/", r"\d+/orders", "/iac/.*/inv",
    "^/iac/.*", "^/iac/.*/items/.*", r"^/v\d+/(?:orders|items)/\w+$", "^(?:foo|bar)+/x",
    "/x/(?P<id>[0-9a-f-]{36})/y", "(?i)^/Orders(/|$)", r"^/(?!admin)\w+/", "a{3}b{2}", "^$", "",
    "(?>a+)b", "a++b", "^.*a.*b", ".*/internal/.*", "(?i).*/login",
]  # fmt: skip
HOSTILE = [
    "a" * 5000, "a" * MATCHED_PATH + "b", "a/" * 2500, "/iac/" * 1000, "1" * 5000, "/a/b" * 1000,
    "foo" * 1700, "/iac/v1/x/items/y/prices/z/" * 200, "aA" * 2500, "/iac/" + "/items/" * 700,
    "-" * 5000, "/x/" * 1700,
]  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_patterns_that_are_wrong_or_could_stall_are_refused_with_the_reason(pattern: str) -> None:
    with pytest.raises(RuleError, match=r"\.$"):
        compile_pattern(pattern)


@pytest.mark.parametrize("pattern", ACCEPTED)
def test_patterns_that_are_let_in_are_quick_on_hostile_paths(pattern: str) -> None:
    flags = Policy(rules=(rule("regex", pattern, "none"),))
    for path in HOSTILE:
        started = time.process_time()
        flags.decide(path)
        assert time.process_time() - started < 0.5


pieces = st.sampled_from(
    ["a", "b", "/", ".", "[^/]", "[ab]", "a*", "a+", "b?", ".*", "[^/]+", "a{0,9}", "(?:a|b)", "$",
     "(a|ab)", "(?:b+)", "/a", "(?:ab)*", "a*?", r"\w*"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(pieces, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_no_pattern_that_is_let_in_stalls(parts: list[str], anchor: bool, group: bool) -> None:
    pattern = ("^" if anchor else "") + "".join(parts)
    if group:
        pattern = f"(?:{pattern})+x"
    try:
        compiled = compile_pattern(pattern)
    except RuleError:
        return
    for path in ("a" * MATCHED_PATH, "ab" * (MATCHED_PATH // 2), "/a" * (MATCHED_PATH // 2)):
        started = time.process_time()
        compiled.search(path)
        assert time.process_time() - started < 0.5, pattern


# -- documents ---------------------------------------------------------------------------------


def test_a_rule_that_cannot_be_used_costs_itself_alone(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    good = {"match": "substring", "pattern": "/a", "level": "none"}
    bad = [
        {"match": "regex", "pattern": "(a+)+", "level": "none"},
        {"match": "regex", "pattern": "(", "level": "none"},
        {"match": "prefix", "pattern": "/b", "level": "none"},
        {"match": "substring", "pattern": "/b", "level": "everything"},
        {"match": "substring", "pattern": 7, "level": "none"},
        {"match": "substring", "pattern": "", "level": "none"},
        {"pattern": "/b"},
        "nonsense",
        None,
    ]
    flags = from_document({"flags": {}, "rules": [*bad, good]}, options())
    assert [item.pattern for item in flags.rules] == ["/a"]
    assert len(caplog.records) == len(bad)


def test_rules_are_taken_while_they_are_few_and_quick_enough(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    """From a database or a publisher of another version, which lets in others than this one."""
    slow = [{"match": "regex", "pattern": f"[a-z]*{n}", "level": "none"} for n in range(300)]
    quick = [{"match": "substring", "pattern": f"/{n}", "level": "none"} for n in range(300)]
    base = options(RULES=json.dumps(quick[:1]))
    flags = from_document({"flags": {}, "rules": [*slow, *quick]}, base)
    assert len([each for each in flags.rules if each.origin == "admin"]) == MAX_RULES
    assert [each.pattern for each in flags.rules[:2]] == ["[a-z]*0", "[a-z]*1"]
    taken = [each.pattern for each in flags.rules if each.match == "regex"]
    assert len(taken) < 10
    check_together(taken)
    assert flags.rules[-1].origin == "settings"
    (said,) = caplog.records
    assert f"{600 - MAX_RULES} endpoint rules are left out, first number" in said.getMessage()
    assert "Begin it with ^" in said.getMessage()


@pytest.mark.parametrize(
    "document",
    [
        {"flags": None, "rules": None},
        {"flags": [1], "rules": "abc"},
        {"flags": {"enabled": "no", "response_bodies": 0, "max_body_bytes": "9", "new": 1}},
        {"flags": {"max_body_bytes": -1, "sample_rate": 7}},
        {"flags": {"max_body_bytes": True, "sample_rate": float("nan")}},
        {"rules": {"match": 1}},
    ],
)
def test_what_is_not_understood_is_as_in_the_settings(
    options: Options, document: dict[str, Any]
) -> None:
    assert from_document(document, options()) == from_settings(options())


def test_a_document_is_taken(options: Options) -> None:
    flags = {"enabled": False, "response_bodies": False, "max_body_bytes": 9, "sample_rate": 0.5}
    taken = from_document({"flags": flags}, options())
    assert (taken.enabled, taken.response_bodies) == (False, False)
    assert (taken.max_body_bytes, taken.sample_rate) == (9, 0.5)


# -- where they come from ----------------------------------------------------------------------


@pytest.mark.django_db
def test_the_document_of_a_service_or_of_every_service() -> None:
    assert policy.document("shop") == {"flags": {}, "rules": []}
    every = CaptureFlags.objects.create(service_name="*", sample_rate=0.5)
    EndpointRule.objects.create(flags=every, position=20, pattern="/late", level="none")
    EndpointRule.objects.create(flags=every, position=10, pattern="/early", level="none")
    document = policy.document("shop")
    assert document["flags"]["sample_rate"] == 0.5
    assert [item["pattern"] for item in document["rules"]] == ["/early", "/late"]
    CaptureFlags.objects.create(service_name="shop", enabled=False)
    assert policy.document("shop")["flags"]["enabled"] is False
    assert json.loads(json.dumps(document)) == document
    assert policy.etag(document) != policy.etag(policy.document("shop"))
