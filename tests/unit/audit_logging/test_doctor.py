"""audit_doctor: what it says of a service that has the capture tier alone, and how it says it."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import Warning
from django.core.management import CommandError, call_command
from django.test import override_settings

from audit_logging.doctor import broker, clock, folders, hiding
from audit_logging.doctor.examinations import (
    Asked,
    Examination,
    Finding,
    examine,
    failure,
    load,
    of_checks,
    ok,
    warning,
)
from audit_logging.doctor.printing import Page, summary
from audit_logging.doctor.running import Report, run
from audit_logging.spool import DurableQueue, Record
from tests.unit.audit_logging.test_checks import Publisher, keys, publisher, service

__all__ = ["keys", "publisher", "service"]


def doctor(*arguments: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("audit_doctor", *arguments, stdout=out)
    except SystemExit as end:
        return int(str(end.code)), out.getvalue()
    return 0, out.getvalue()


def findings(*arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    status, said = doctor("--json", *arguments)
    by_group: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(said)["findings"]:
        by_group.setdefault(each["group"], []).append(each)
    return status, by_group


# -- the whole, of a service with the capture tier ----------------------------------------------


def test_a_service_with_nothing_wrong(
    service: Callable[..., Any], publisher: Publisher, tmp_path: Path
) -> None:
    status, found = findings()
    assert status == 0
    assert list(found) == ["settings", "folders", "broker", "queues", "keys", "publisher", "clock"]
    assert {each["level"] for group in found.values() for each in group} == {"ok"}
    assert "knows the key of consumer shop" in found["publisher"][0]["message"]
    # Nothing is made by looking: no spool, no broker.
    assert not list(tmp_path.rglob("*.sqlite3"))


@pytest.mark.parametrize(
    ("status", "number"), [(401, "W025"), (403, "W026"), (404, "W024"), (500, "W023")]
)
def test_a_publisher_that_does_not_take_our_events_is_a_failure(
    service: Callable[..., Any], publisher: Publisher, status: int, number: str
) -> None:
    publisher.answer = (status, b'{"title": "said so"}')
    code, found = findings("--only", "publisher")
    (finding,) = found["publisher"]
    assert (code, finding["level"], finding["check"]) == (1, "FAIL", f"audit_logging.{number}")
    assert "said so" in finding["message"]
    assert finding["cure"]


def test_a_key_that_everybody_can_read_and_settings_that_are_wrong(
    service: Callable[..., Any], keys: dict[str, Path]
) -> None:
    keys["rsa"].chmod(0o644)
    try:
        code, found = findings("--only", "settings", "--only", "keys")
    finally:
        keys["rsa"].chmod(0o600)
    # The check says it, once.
    assert code == 0
    assert [each["check"] for each in found["settings"]] == ["audit_logging.W005"]
    assert "keys" not in found
    assert findings("--only", "settings", "--fail-level", "warning")[0] == 0
    service(SERVICE_NAME="")
    code, found = findings("--only", "settings")
    assert (code, found["settings"][0]["check"]) == (1, "audit_logging.E002")


def test_warnings_fail_when_that_is_asked_for(service: Callable[..., Any]) -> None:
    service(SERVICE_NAME="my-service")
    assert doctor("--only", "settings")[0] == 0
    assert doctor("--only", "settings", "--fail-level", "warning")[0] == 1


def test_the_publisher_s_smaller_limit(
    service: Callable[..., Any], publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler: Any = publisher.RequestHandlerClass
    sent = handler.end_headers

    def end_headers(self: Any) -> None:
        self.send_header("Audit-Max-Event-Bytes", "500000")
        sent(self)

    monkeypatch.setattr(handler, "end_headers", end_headers)
    _, found = findings("--only", "publisher")
    assert [each["check"] for each in found["publisher"]] == ["audit_logging.W029"]
    service(MAX_EVENT_BYTES=400_000)
    _, found = findings("--only", "publisher")
    assert "500,000" in found["publisher"][-1]["message"]
    assert {each["level"] for each in found["publisher"]} == {"ok"}


@pytest.mark.parametrize(
    ("ahead", "level", "said"),
    [
        (0, "ok", ""),
        (-10, "warning", "ahead of that of the publisher"),
        (-100, "FAIL", "ahead of that of the publisher"),
        (100, "warning", "behind that of the publisher"),
        (400, "FAIL", "behind that of the publisher"),
    ],
)
def test_clocks_that_differ(
    service: Callable[..., Any],
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
    level: str,
    said: str,
) -> None:
    handler: Any = publisher.RequestHandlerClass
    # In whole seconds, as the header has them; the middle of one, whenever this runs.
    shown: Callable[..., str] = lambda self, timestamp=None: formatdate(  # noqa: E731
        time.time() + ahead, usegmt=True
    )
    monkeypatch.setattr(handler, "date_time_string", shown)
    _, found = findings("--only", "clock")
    (finding,) = found["clock"]
    assert finding["level"] == level
    assert said in finding["message"]
    assert level == "ok" or "NTP" in finding["cure"]


def test_a_broker_that_is_away_and_one_that_is_a_file(
    service: Callable[..., Any], tmp_path: Path
) -> None:
    service(BROKER_URL="redis://user:hidden-password@127.0.0.1:1/0")
    status, said = doctor("--only", "broker", "--only", "queues")
    assert status == 1
    assert "redis://127.0.0.1:1" in said
    assert "hidden-password" not in said
    path = tmp_path / "broker.sqlite3"
    queue = DurableQueue(path)
    queue.append("audit_logging", [Record(b"{}")] * 3)
    queue.close()
    service(BROKER_URL=f"durable://{path}")
    status, found = findings("--only", "broker", "--only", "queues")
    assert status == 0
    assert found["queues"][0]["message"] == "audit_logging: 3 waiting"
    many = list(broker.depth("X", f"durable://{path}", "audit_logging", many=2))
    assert [each.level for each in many] == ["warning"]


def test_a_project_that_records_nothing_has_nothing_of_capture(service: Any) -> None:
    service(ENABLED=False)
    _, found = findings()
    assert set(found) == {"settings"}
    with override_settings(MIDDLEWARE=[]):
        assert set(findings()[1]) == {"settings"}


def test_usage() -> None:
    with pytest.raises(CommandError, match="invalid choice: 'nonsense'"):
        call_command("audit_doctor", "--only", "clock", "nonsense")
    with pytest.raises(CommandError, match="invalid choice: 'nonsense'"):
        call_command("audit_doctor", "--only", "clock,nonsense")


@pytest.mark.parametrize(
    "only", [["--only", "broker", "settings"], ["--only", "broker,settings"], None]
)
def test_several_groups(service: Callable[..., Any], only: list[str] | None) -> None:
    service(BROKER_URL="redis://127.0.0.1:1/0")
    arguments = only or ["--only", "broker", "--only", "settings"]
    assert set(findings(*arguments)[1]) == {"broker", "settings"}


def test_djangos_checks_of_tls_have_a_cure() -> None:
    for number in ("04", "08", "12", "16"):
        (finding,) = of_checks([Warning("not set", id=f"security.W0{number}")])
        assert "AUDIT_TLS=on" in finding.cure
    (other,) = of_checks([Warning("x", hint="y", id="security.W018")])
    assert other.cure == "y"


def test_it_says_so_when_there_is_nothing_to_examine(service: Any) -> None:
    assert doctor("--only", "buckets") == (0, "Nothing to examine here.\n")


# -- running: bounded, side by side, never an error of its own ---------------------------------


def of(function: Callable[[Asked], Any], seconds: float = 30.0) -> Examination:
    return Examination("topics", function.__name__, function, seconds)


def test_what_hangs_is_told_after_its_time_with_what_it_had_found() -> None:
    goes_on = threading.Event()

    def hangs(asked: Asked) -> Iterator[Finding]:
        yield ok("so far")
        goes_on.wait(60)
        yield ok("too late")

    def answers(asked: Asked) -> Iterator[Finding]:
        yield ok("at once")

    try:
        reports = list(run([of(hangs, 0.05), of(answers)], Asked()))
    finally:
        goes_on.set()
    assert [(each.level, each.message) for each in reports[0].findings] == [
        ("ok", "so far"),
        ("FAIL", "No answer within 0.05 s."),
    ]
    assert [each.level for each in reports[1].findings] == ["ok"]


def test_examinations_run_side_by_side() -> None:
    """Each waits for the other: one after the other they would never end."""
    barrier = threading.Barrier(2, timeout=30)

    def waits(asked: Asked) -> Iterator[Finding]:
        barrier.wait()
        yield ok("met")

    reports = list(run([of(waits), of(waits)], Asked()))
    assert [each.level for report in reports for each in report.findings] == ["ok", "ok"]


def test_an_examination_that_raises_is_a_failure_without_secrets() -> None:
    def raises(asked: Asked) -> Iterator[Finding]:
        raise RuntimeError("cannot reach amqp://admin:open-sesame@mq:5672")

    def leaks(asked: Asked) -> Iterator[Finding]:
        from django.conf import settings

        yield warning(f"key {settings.SECRET_KEY}", f"change {settings.SECRET_KEY}")

    first, second = run([of(raises), of(leaks)], Asked())
    assert first.findings[0].level == "FAIL"
    assert first.findings[0].message == "RuntimeError: cannot reach amqp://mq:5672"
    assert (second.findings[0].message, second.findings[0].cure) == ("key ***", "change ***")


def test_a_password_is_hidden_in_every_spelling(settings: Any) -> None:
    settings.CELERY_BROKER_URL = "redis://:p%40ss%2Fword@redis:6379/0"
    said = hiding.scrub("p%40ss%2Fword and p@ss/word in redis://:p%40ss%2Fword@redis:6379/0")
    assert said == "*** and *** in redis://redis:6379/0"


def test_a_group_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        examine("nonsense", "x")


def test_every_installed_app_is_examined() -> None:
    titles = {(each.group, each.title) for each in load()}
    assert ("topics", "regions") in titles
    assert ("buckets", "sites") in titles
    assert len(titles) == len(load())


# -- printing -----------------------------------------------------------------------------------


def page(columns: int, *found: Finding, title: str = "schema registry") -> list[str]:
    out = io.StringIO()
    report = Report(Examination("registry", title, lambda asked: [], 1.0), list(found))
    Page(out, [report.examination], columns=columns).add(report)
    return out.getvalue().splitlines()


LONG = failure(
    "api-audit-events in region primary takes records up to 1,048,588 bytes, which is too little.",
    "Raise https://registry.example.com/a/very/long/address/that/must/stay/whole/to/be/copied to 2",
)


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 200])
def test_lines_are_no_wider_than_the_terminal(columns: int) -> None:
    lines = page(columns, ok("fine"), LONG)
    assert lines[0] == "registry"
    whole = [line for line in lines if "https://" in line]
    assert whole[0].strip().endswith("copied") or "copied to" in whole[0]
    for line in lines:
        assert len(line) <= max(columns, 30) or "https://" in line
    assert "cure: Raise" in "\n".join(lines)


def test_what_belongs_together_stands_below_each_other() -> None:
    lines = page(100, ok("first"), warning("second", "do"), failure("third", "do"))
    starts = {line.index(word) for line, word in zip(lines[1:], ["first", "second"], strict=False)}
    assert len(starts) == 1
    assert lines[1].startswith("  ok       schema registry  first")
    assert lines[2].startswith("  warning  " + " " * 17 + "second")


def test_colours_are_for_terminals_alone(service: Callable[..., Any]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    call_command("audit_doctor", "--only", "settings", "--force-color", stdout=out)
    assert "\x1b[" in out.getvalue()
    out = Terminal()
    call_command("audit_doctor", "--only", "settings", "--no-color", stdout=out)
    assert "\x1b[" not in out.getvalue()
    assert "\x1b[" not in doctor("--only", "settings", "--force-color")[1]


def test_the_last_line_counts() -> None:
    examination = Examination("keys", "x", lambda asked: [], 1.0)
    found = [ok("a"), ok("b"), warning("c", ""), failure("d", "")]
    assert summary([Report(examination, found)], 1.25) == "2 ok, 1 warning, 1 failure, in 1.2 s"


# -- helpers ------------------------------------------------------------------------------------


def levels(found: Iterator[Finding]) -> list[str]:
    return [each.level for each in found]


def test_folders(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    assert levels(folders.look_at_folder("X", private, 0)) == ["ok"]
    assert levels(folders.look_at_folder("X", private / "to" / "be" / "made", 0)) == ["ok"]
    assert levels(folders.look_at_folder("X", private, 1 << 60)) == ["warning", "ok"]
    (tmp_path / "file").write_text("")
    (refused,) = folders.look_at_folder("X", tmp_path / "file" / "folder", 0)
    assert (refused.level, "X: " in refused.message) == ("FAIL", True)
    assert "write access" in refused.cure


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(folders, "refused", lambda folder: os.strerror(number))
    (refused,) = folders.look_at_folder("X", tmp_path, 0)
    assert "the disk is full" in refused.message
    assert "write access" not in refused.cure
    assert "Make room" in refused.cure


def test_a_folder_that_others_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    # pytest keeps everybody else out of the folders above.
    assert levels(folders.look_at_folder("X", folder, 0)) == ["ok"]
    monkeypatch.setattr(folders, "_is_kept_away", lambda folder: False)
    (finding, _) = folders.look_at_folder("X", folder, 0)
    assert (finding.level, finding.cure) == ("warning", f"chmod 700 {folder}")


@pytest.mark.parametrize(("kind", "level"), [("nfs4", "FAIL"), ("tmpfs", "warning")])
def test_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: str
) -> None:
    monkeypatch.setattr(folders, "file_system", lambda path: kind)
    assert levels(folders.look_at_folder("X", tmp_path, 0))[0] == level


def certificate(path: Path, days: int) -> Path:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry.example.com")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1000))
        .not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(("days", "level"), [(-1, "FAIL"), (3, "warning"), (300, "ok")])
def test_certificates_that_end(tmp_path: Path, days: int, level: str) -> None:
    path = certificate(tmp_path / "ca.pem", days)
    (finding,) = folders.look_at_certificates("CA_FILE", path)
    assert finding.level == level
    assert level == "ok" or "registry.example.com" in finding.message


def test_files_that_are_no_certificates_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("nonsense")
    assert levels(folders.look_at_certificates("X", tmp_path / "x.pem")) == ["FAIL"]
    assert levels(folders.look_at_certificates("X", tmp_path / "none.pem")) == ["FAIL"]
    assert levels(folders.look_at_secret("X", tmp_path / "none.pem")) == ["FAIL"]
    (tmp_path / "x.pem").chmod(0o644)
    assert levels(folders.look_at_secret("X", tmp_path / "x.pem")) == ["warning"]
    (tmp_path / "x.pem").chmod(0o600)
    assert levels(folders.look_at_secret("X", tmp_path / "x.pem")) == ["ok"]


def test_a_second_is_no_skew() -> None:
    # The header shows whole seconds, and the answer took its time.
    assert levels(clock.compare("x", 1000.0, 1000.9, 1001.4)) == ["ok"]
    assert levels(clock.compare("x", 1000.0, 1004.0, 1004.1)) == ["warning"]
