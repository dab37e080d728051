"""Policy: flags and rules decide; a bad one costs itself alone; no rule can stall a request."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_logging import policy
from audit_logging.background import Snapshot
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import Publisher
from audit_logging.models import CaptureFlags, EndpointRule
from audit_logging.patterns import MATCHED_PATH, RuleError, compile_pattern
from audit_logging.policy import Policy, PublisherSource, Rule, from_document, from_settings
from tests.support import eventually

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


@given(st.integers(0, 2**128 - 1), st.floats(0, 1))
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


# -- patterns ----------------------------------------------------------------------------------

REFUSED = [
    "(a+)+", "(a*)*b", "(a|aa)+$", "(a|a)*b", "(a|a?)+b", "(a?a?)+$", "(.|a)+b", r"(\w+\s?)*$",
    r"(a)\1+", ".*a.*b", ".*.*.*x", "^a*a*a*$", "^(a*)(a*)(a*)$", "(?:/[a-z]+)+$", "(", "[z-a]",
    "a" * 201, "(?:(?:a{1,9}){1,9}){1,9}b", "(x+x+)+y", "((a{2,}))+b",
]  # fmt: skip
ACCEPTED = [
    r"^/iac/v1/[^/]+/items/[^/]+/prices/[^/]+$", "/orders", r"/v\d+/", r"\d+/orders", "/iac/.*/inv",
    "^/iac/.*", "^/iac/.*/items/.*", r"^/v\d+/(?:orders|items)/\w+$", "(?:foo|bar)+/x",
    "/x/(?P<id>[0-9a-f-]{36})/y", "(?i)^/Orders(/|$)", r"^/(?!admin)\w+/", "a{3}b{2}", "^$", "",
    "(?>a+)b", "a++b", "^.*a.*b", "^(?:a*)(?:(a*)$|b)",
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


def saved(flags: CaptureFlags, **values: Any) -> bool:
    """Whether it could be saved: in memory, SQLite refuses writers while somebody reads."""
    try:
        return bool(CaptureFlags.objects.filter(pk=flags.pk).update(**values))
    except OperationalError:
        return False


@pytest.mark.django_db(transaction=True)
def test_a_flag_changed_in_the_database_acts_from_the_first_request_and_while_running(
    options: Options,
) -> None:
    from audit_logging.conf import conf

    flags = CaptureFlags.objects.create(service_name=conf.SERVICE_NAME, enabled=False)
    in_force = policy.make_snapshot(options(FLAGS_REFRESH_SECONDS="0.1"))
    # The first question already has the answer of the database.
    assert in_force().decide("/x").skip == "flag"
    try:
        eventually(lambda: saved(flags, enabled=True))
        eventually(lambda: in_force().decide("/x").skip is None)
    finally:
        in_force.__self__.stop(5)  # type: ignore[attr-defined]


def test_a_process_that_starts_has_its_flags_before_its_first_request(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Any) -> Policy:
        threading.Event().wait(0.05)
        return Policy(level="none")

    monkeypatch.setattr(policy.DatabaseSource, "__call__", slow)
    in_force = policy.make_snapshot(options())
    assert in_force().decide("/secret").skip == "rule"
    in_force.__self__.stop(5)  # type: ignore[attr-defined]


def test_a_source_that_fails_leaves_the_last_known_policy() -> None:
    answers: list[Any] = [Policy(enabled=False), RuntimeError("database is down")]

    first_reader = threading.Event()

    def load() -> Policy:
        first_reader.wait(10)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    snapshot = Snapshot(load, initial=Policy(), interval=0.01, name="test")
    assert snapshot.get().enabled  # the first reader does not wait
    first_reader.set()
    eventually(lambda: not snapshot.get().enabled)
    eventually(lambda: len(answers) == 1)
    assert not snapshot.refresh()
    assert not snapshot.get().enabled
    answers[0] = Policy(sample_rate=0.5)
    eventually(lambda: snapshot.get().sample_rate == 0.5)
    snapshot.stop()


def test_a_database_that_hangs_holds_the_start_up_for_a_moment_alone() -> None:
    hanging = threading.Event()
    snapshot = Snapshot(
        lambda: hanging.wait(30) and Policy(), initial=Policy(), interval=1, name="t"
    )
    started = time.monotonic()
    assert not snapshot.prime(0.05)
    assert time.monotonic() - started < 5
    hanging.set()


class Flags(http.server.BaseHTTPRequestHandler):
    """A publisher that serves one flags document."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("If-None-Match")))
        tag = policy.etag(server.document)
        if server.status != 200:
            self.send_response(server.status)
            self.end_headers()
        elif self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
        else:
            body = json.dumps(server.document).encode()
            self.send_response(200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def central(options: Options, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flags)
    server.asked, server.status = [], 200
    server.document = {"flags": {"enabled": False}, "rules": []}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    publisher = Publisher(options(PUBLISHER_URL=url, DELIVERY_TIMEOUT="2"))
    monkeypatch.setattr("audit_logging.delivery.get_publisher", lambda: publisher)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_flags_from_the_central_admin(central: Any, options: Options, tmp_path: Any) -> None:
    source = PublisherSource(tmp_path / "new" / "flags.json")
    assert source.kept() is None
    assert not source().enabled
    assert not source().enabled  # 304: nothing new
    central.document = {"flags": {"sample_rate": 0.5}, "rules": []}
    assert source().sample_rate == 0.5
    tags = [tag for _, tag in central.asked]
    assert tags[0] is None
    assert tags[1] is not None
    assert tags[2] == tags[1]
    assert central.asked[0][0].startswith("/v1/config/")
    central.status = 503
    with pytest.raises(Exception, match="503"):
        source()
    # A process that starts while the publisher is down has the last answer.
    kept = PublisherSource(tmp_path / "new" / "flags.json").kept()
    assert kept is not None
    assert kept.sample_rate == 0.5
    (file,) = (tmp_path / "new").iterdir()
    assert file.name == "flags.json"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_kept_file_is_no_obstacle(tmp_path: Any, content: bytes) -> None:
    (tmp_path / "flags.json").write_bytes(content)
    assert PublisherSource(tmp_path / "flags.json").kept() is None


def test_flags_that_cannot_be_kept_are_in_force_all_the_same(central: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("in the way")
    assert not PublisherSource(tmp_path / "file" / "flags.json")().enabled


def test_flags_by_settings_alone_start_no_thread(options: Options) -> None:
    before = threading.active_count()
    in_force = policy.make_snapshot(options(FLAGS_SOURCE="settings", SAMPLE_RATE="0.5"))
    assert in_force().sample_rate == 0.5
    assert threading.active_count() == before
