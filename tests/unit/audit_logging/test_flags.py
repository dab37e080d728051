"""Flags: where they come from, what holds while their source is away, and quiet in test runs."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError

from audit_logging import flags, policy, testing, uptake
from audit_logging.conf import LoggingSettings
from audit_logging.delivery import Publisher
from audit_logging.flags import Flags
from audit_logging.models import CaptureFlags
from audit_logging.policy import from_settings
from tests.support import eventually, fork

Options = Callable[..., LoggingSettings]


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

    row = CaptureFlags.objects.create(service_name=conf.SERVICE_NAME, enabled=False)
    running = Flags(
        options(FLAGS_REFRESH_SECONDS="0.1", SERVICE_NAME=conf.SERVICE_NAME), even_in_tests=True
    )
    assert running.prime(10)
    # The first question already has the answer of the database.
    assert running.get().decide("/x").skip == "flag"
    try:
        eventually(lambda: saved(row, enabled=True))
        eventually(lambda: running.get().decide("/x").skip is None)
    finally:
        running.stop(5)


class Answers:
    """A source that answers what a test says; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.told: list[str] = []
        self.rested: list[bool] = []

    def load(self, tag: str, *, tell: bool) -> Any:
        self.asked.append(tag)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            return None
        tag_now = policy.etag(answer)
        return None if tag_now == tag else (answer, tag_now)

    def in_force(self, tag: str) -> None:
        self.told.append(tag)

    def rest(self, *, last: bool = False) -> None:
        self.rested.append(last)


def off(**flags: Any) -> dict[str, Any]:
    return {"flags": {"enabled": False} | flags, "rules": []}


def live(options: LoggingSettings, source: Any, monkeypatch: pytest.MonkeyPatch) -> Flags:
    monkeypatch.setattr(flags, "_source", lambda options: source)
    return Flags(options, even_in_tests=True)


def test_a_process_that_starts_has_its_flags_before_its_first_request(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> dict[str, Any]:
        threading.Event().wait(0.05)
        return off()

    source = Answers(slow)
    started = live(options(), source, monkeypatch)
    assert started.prime(10)
    assert started.policy.decide("/secret").skip == "flag"
    # The thread of the first question leaves no connection behind.
    eventually(lambda: source.rested == [True])


def test_looks_are_seldom_and_leave_time_to_act_within_five_seconds(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may be a new connection of the service's database, for each of its processes."""
    running = live(options(), Answers(off()), monkeypatch)
    running._step()
    pauses = [running._step() for _ in range(200)]
    assert max(pauses) <= 3.0
    assert min(pauses) >= 2.1
    assert max(pauses) - min(pauses) > 0.5, "processes that started together ask together"


def test_a_source_that_fails_leaves_the_last_known_policy(
    options: Options, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first_reader = threading.Event()
    source = Answers(lambda: first_reader.wait(10) and off(), RuntimeError("database is down"))
    running = live(options(FLAGS_REFRESH_SECONDS="0.1"), source, monkeypatch)
    try:
        assert running.get().enabled  # the first reader does not wait
        first_reader.set()
        eventually(lambda: not running.get().enabled)
        eventually(lambda: len(source.asked) > 2)
        assert not running.get().enabled
        # Once, and not with each question.
        assert sum("database is down" in record.message for record in caplog.records) == 1
        source.answers[0] = off(enabled=True, sample_rate=0.5)
        eventually(lambda: running.get().sample_rate == 0.5)
        # What is in force is told after each answer, and never after a failure.
        eventually(lambda: len(set(source.told)) == 2)
    finally:
        running.stop(5)


def test_a_source_that_hangs_holds_the_start_up_for_a_moment_alone(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    source = Answers(lambda: hanging.wait(30) and off())
    started = live(options(), source, monkeypatch)
    begun = time.monotonic()
    assert not started.prime(0.05)
    assert time.monotonic() - begun < 5
    assert started.policy.enabled
    hanging.set()


def test_a_restart_without_its_source_has_the_last_flags(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source_name in ("database", "publisher"):
        chosen = options(FLAGS_SOURCE=source_name)
        before = live(chosen, Answers(off(sample_rate=0.25)), monkeypatch)
        before.refresh()
        source = Answers(OSError("away"))
        after = live(chosen, source, monkeypatch)
        assert not after.prime(10)
        assert (after.policy.enabled, after.policy.sample_rate) == (False, 0.25)
        # It says at once what it has: an answer that still holds need not be sent.
        assert source.asked == [before._etag]
        # What another source said, or of another service, is not ours.
        other = {"database": "publisher", "publisher": "database"}[source_name]
        assert live(options(FLAGS_SOURCE=other), source, monkeypatch).policy.enabled
        assert live(
            options(FLAGS_SOURCE=source_name, SERVICE_NAME="other"), source, monkeypatch
        ).policy.enabled
        (file,) = chosen.DATA_DIR.iterdir()
        assert file.name == "flags.json"
        assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b"{}", b"x" * (5 << 20),
     b'{"source":"database","service":"shop","etag":7,"document":{}}',
     b'{"source":"database","service":"shop","etag":"a","document":[]}'],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_kept_file_is_no_obstacle(
    options: Options, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    chosen = options()
    chosen.DATA_DIR.mkdir(parents=True)
    (chosen.DATA_DIR / "flags.json").write_bytes(content)
    started = live(chosen, Answers(off()), monkeypatch)
    assert started.policy == from_settings(chosen)
    assert started.prime(10)
    assert not live(chosen, Answers(OSError()), monkeypatch).policy.enabled


def test_flags_that_cannot_be_kept_are_in_force_all_the_same(
    options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    started = live(options(DATA_DIR=tmp_path / "file" / "x"), Answers(off()), monkeypatch)
    assert started.prime(10)
    assert not started.policy.enabled


def test_a_source_that_says_not_modified_to_a_first_question_is_no_answer(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = live(options(), Answers(None), monkeypatch)
    assert not started.prime(10)
    assert started.loaded_at is None


def test_a_thread_that_cannot_be_started_is_tried_again(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = live(options(), Answers(off()), monkeypatch)
    with monkeypatch.context() as full:
        full.setattr(
            threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread"))
        )
        assert running.get().enabled
        assert not running.prime()
    try:
        eventually(lambda: not running.get().enabled)
    finally:
        running.stop(5)


def test_many_processes_do_not_ask_in_step(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = live(options(FLAGS_REFRESH_SECONDS="5"), Answers(off()), monkeypatch)
    # That flags are new is told at once.
    assert running._step() < 1
    pauses = {running._step() for _ in range(50)}
    assert len(pauses) > 40
    # A change acts within what was asked for.
    assert 3 < min(pauses) < max(pauses) <= 5


def test_a_source_that_is_away_is_asked_less_often_but_within_five_seconds(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = live(options(FLAGS_REFRESH_SECONDS="1"), Answers(OSError("away")), monkeypatch)
    pauses = [away._step() for _ in range(10)]
    assert pauses[0] < min(pauses[4:])
    assert max(pauses) <= 5


def test_a_fork_asks_for_itself(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    running = live(options(FLAGS_REFRESH_SECONDS="0.1"), Answers(off()), monkeypatch)
    running.prime(10)
    running.get()
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        try:
            running._source.answers[:] = [off(sample_rate=0.5)]  # type: ignore[union-attr]
            eventually(lambda: running.get().sample_rate == 0.5)
            os.write(writing, b"taken up")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read() == "taken up"
    os.waitpid(child, 0)
    running.stop(5)


# -- from the central admin --------------------------------------------------------------------


class Central(http.server.BaseHTTPRequestHandler):
    """A publisher that serves one flags document."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append(
            (self.path, self.headers.get("If-None-Match"), self.headers.get("Audit-Process"))
        )
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
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Central)
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


def test_flags_from_the_central_admin(central: Any, options: Options) -> None:
    chosen = options(FLAGS_SOURCE="publisher")
    running = Flags(chosen, even_in_tests=True)
    assert running.policy.enabled
    # Who primes need not serve, and is not shown.
    assert running.prime(10)
    assert not running.policy.enabled
    running.refresh(tell=True)  # 304: nothing new
    central.document = {"flags": {"sample_rate": 0.5}, "rules": []}
    running.refresh(tell=True)
    assert running.policy.sample_rate == 0.5
    tags = [tag for _, tag, _ in central.asked]
    assert tags[0] is None
    assert tags[1] is not None
    assert tags[2] == tags[1]
    assert central.asked[0][0] == "/v1/config/shop"
    # Each later question says which process asks, and the first of them what its settings are.
    assert central.asked[0][2] is None
    told = [
        uptake.from_header("shop", tag or "", header, 9) for _, tag, header in central.asked[1:]
    ]
    assert {(report.pid, report.host) for report in told if report} == {
        (os.getpid(), socket.gethostname()[:100])
    }
    assert [bool(report and report.settings) for report in told] == [True, False]
    central.status = 503
    with pytest.raises(Exception, match="503"):
        running.refresh()
    # A process that starts while the publisher is down has the last answer.
    again = Flags(chosen, even_in_tests=True)
    assert again.policy.sample_rate == 0.5


def test_flags_by_settings_alone_start_no_thread(options: Options) -> None:
    before = threading.active_count()
    in_force = flags.in_force(options(FLAGS_SOURCE="settings", SAMPLE_RATE="0.5"))
    assert in_force().sample_rate == 0.5
    assert threading.active_count() == before


# -- in a test run -----------------------------------------------------------------------------


def test_in_a_test_run_nothing_is_asked(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Answers(off())
    monkeypatch.setattr(flags, "_source", lambda options: source)
    chosen = options()
    chosen.DATA_DIR.mkdir(parents=True)
    kept = {"source": "database", "service": "shop", "etag": "a", "document": off()}
    (chosen.DATA_DIR / "flags.json").write_text(json.dumps(kept))
    before = threading.active_count()
    quiet = Flags(chosen)
    assert not quiet.prime()
    assert quiet.get().enabled
    assert (source.asked, threading.active_count()) == ([], before)
    # One that was asked for before the test run began falls silent.
    assert quiet._step() > 0
    assert source.asked == []
    quiet.refresh()
    assert not quiet.get().enabled
    assert json.loads((chosen.DATA_DIR / "flags.json").read_text()) == kept
    quiet.reset()
    assert quiet.get().enabled


@pytest.mark.django_db
def test_a_host_s_test_sees_the_rows_of_its_own_transaction(
    settings: Any, tmp_path: Any, client: Any
) -> None:
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop", "DATA_DIR": tmp_path}
    get = flags.in_force()
    assert get().enabled
    CaptureFlags.objects.create(service_name="shop", enabled=False)
    assert get().enabled
    testing.refresh_flags()
    assert not get().enabled
    testing.reset_flags()
    assert get().enabled
    # Overridden settings act on a middleware that is there already.
    settings.AUDIT_LOGGING = {
        "SERVICE_NAME": "shop",
        "FLAGS_SOURCE": "settings",
        "RULES": [{"match": "substring", "pattern": "/x", "level": "none"}],
    }
    assert get().decide("/x").skip == "rule"
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop", "SAMPLE_RATE": "lots"}
    assert get().decide("/x").skip == "rule"


def test_a_process_that_is_no_test_run_is_not_taken_for_one() -> None:
    code = (
        "import django.conf; django.conf.settings.configure(); import django; django.setup();"
        "import django.core.mail, audit_logging.flags as f; before = f.in_test_run();"
        "import django.test.utils as u; imported = f.in_test_run();"
        "u.setup_test_environment(); during = f.in_test_run();"
        "u.teardown_test_environment(); print(before, imported, during, f.in_test_run())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DJANGO")}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert answer.stdout.split() == ["False", "False", "True", "False"]


def test_mails_in_memory_and_a_test_library_make_no_test_run() -> None:
    code = (
        "import django.conf; django.conf.settings.configure(); import django; django.setup();"
        "from django.core import mail; import pytest_django, audit_logging.flags as f;"
        "mail.get_connection('django.core.mail.backends.locmem.EmailBackend');"
        "print(hasattr(mail, 'outbox'), f.in_test_run());"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DJANGO", "PYTEST_"))}
    for more, expected in (({}, "False"), ({"PYTEST_VERSION": "8.2"}, "True")):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment | more,
        )
        assert answer.stdout.split() == ["True", expected]


def test_a_test_run_is_told_of_once(
    options: Callable[..., LoggingSettings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "audit_logging.flags")
    flags = Flags(options(FLAGS_SOURCE="database"))
    flags.get()
    assert not flags.prime()
    assert [record.getMessage()[:31] for record in caplog.records] == [
        "this is taken for a test run: F"
    ]
