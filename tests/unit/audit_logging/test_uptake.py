"""Uptake: processes tell which flags they have; admin shows it; nothing depends on it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from audit_logging import uptake
from audit_logging.conf import LoggingSettings
from audit_logging.flags import DatabaseSource, Flags
from audit_logging.models import CaptureFlags, CaptureProcess
from audit_logging.overview import MOST_SHOWN, ago, overviews
from audit_logging.policy import document, etag
from audit_logging.uptake import Report, Reporter

Options = Callable[..., LoggingSettings]

URL = "/admin/audit_logging/captureflags/"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def report(n: int = 1, tag: str = "", silent: float = 0, **values: Any) -> Report:
    seen = timezone.now().timestamp() - silent
    fields = {
        "service": "shop", "host": f"api-{n}", "pid": n, "started": seen - 100, "version": "0.1",
        "source": "publisher", "etag": tag, "seen": seen,
    } | values  # fmt: skip
    return Report(**fields)


# -- telling -----------------------------------------------------------------------------------


def test_what_is_told_arrives(options: Options) -> None:
    chosen = options(FLAGS_SOURCE="publisher", EXCLUDE_PATHS="/a&b=c,/ü")
    (header,) = Reporter(chosen, "publisher").headers().values()
    assert header.isascii()
    got = uptake.from_header("shop", '"tag"', header, 99.0)
    assert got is not None
    assert (got.pid, got.etag, got.seen, got.source) == (os.getpid(), '"tag"', 99.0, "publisher")
    assert "/a&b=c" in got.settings


def test_settings_too_long_for_a_header_are_left_out(options: Options) -> None:
    for length in (1500, 4000):
        chosen = options(EXCLUDE_PATHS=",".join(f"/ü{n}" for n in range(length // 8)))
        (header,) = Reporter(chosen, "publisher").headers().values()
        # Servers refuse headers of 8 KB.
        assert len(header) <= 6000
        assert uptake.from_header("shop", "", header, 99.0) is not None


@pytest.mark.django_db
def test_a_process_writes_its_own_row_where_the_database_is_its_source(options: Options) -> None:
    clock = Clock()
    reporter = Reporter(options(), "database", clock)
    reporter.store('"one"')
    row = CaptureProcess.objects.get()
    assert (row.service_name, row.pid, row.source, row.flags_etag) == (
        "shop", os.getpid(), "database", '"one"',
    )  # fmt: skip
    assert '"excluded"' in row.settings
    with CaptureQueriesContext(connection) as asked:
        reporter.store('"one"')
    assert len(asked) == 0
    # At once when there is news; else now and then.
    reporter.store('"two"')
    row.refresh_from_db()
    assert row.flags_etag == '"two"'
    seen = row.last_seen
    clock.now += uptake.HEARTBEAT
    reporter.store('"two"')
    row.refresh_from_db()
    assert row.last_seen > seen
    CaptureProcess.objects.update(last_seen=timezone.now() - timedelta(days=1))
    clock.now += 1000
    reporter.store('"two"')
    assert CaptureProcess.objects.count() == 1


@pytest.mark.django_db
def test_the_dead_are_forgotten_by_any_process(options: Options) -> None:
    clock = Clock()
    reporter = Reporter(options(), "database", clock)
    uptake.store([report(1, silent=uptake.FORGET + 10), report(2, silent=uptake.STALE)])
    clock.now += 200
    reporter.store('"one"')
    assert set(CaptureProcess.objects.values_list("pid", flat=True)) == {2, os.getpid()}


@pytest.mark.django_db
def test_naive_times_where_the_host_has_them(options: Options, settings: Any) -> None:
    settings.USE_TZ = False
    Reporter(options(), "database").store('"one"')
    flags = CaptureFlags.objects.create(service_name="shop")
    (overview,) = overviews([flags]).values()
    assert overview.live == 1
    assert uptake.prune(timezone.now().timestamp()) == 0


class Refusing:
    """A database that takes no writes."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if "captureprocess" in sql:
            self.asked += 1
            raise DatabaseError("attempt to write a readonly database")
        return execute(sql, params, many, context)


@pytest.mark.django_db
def test_a_database_that_cannot_be_written_costs_the_overview_alone(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    reporter = Reporter(options(), "database", clock)
    refusing = Refusing()
    with caplog.at_level(logging.INFO), connection.execute_wrapper(refusing):
        for _ in range(5):
            reporter.store('"one"')
            clock.now += 2
    # It is left alone for minutes, and the log says it once.
    assert refusing.asked == 1
    assert len([r for r in caplog.records if "readonly" in r.getMessage()]) == 1
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    clock.now += 400
    reporter.store('"one"')
    assert CaptureProcess.objects.count() == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("down_to", ["0002", "zero"])
def test_flags_survive_a_migration_that_is_taken_back(
    options: Options, down_to: str, client: Client, admin_client: Client, settings: Any
) -> None:
    from django.core.management import call_command

    settings.ALLOWED_HOSTS = ["testserver"]
    flags = CaptureFlags.objects.create(service_name="shop", enabled=False)
    running = Flags(options(), even_in_tests=True)
    try:
        running.prime(10)
        assert not running.policy.enabled
        call_command("migrate", "audit_logging", down_to, verbosity=0)
        try:
            running._step()
            assert not running.policy.enabled
            # A restart without the tables.
            again = Flags(options(), even_in_tests=True)
            again._step()
            assert not again.policy.enabled
        finally:
            call_command("migrate", "audit_logging", verbosity=0)
        if down_to == "zero":
            flags.pk = None
        flags.enabled = True
        flags.save()
        running._step()
        assert running.policy.enabled
        assert CaptureProcess.objects.get().flags_etag == etag(document("shop"))
    finally:
        running.stop()
        connections.close_all()


@pytest.mark.django_db
def test_connections_are_kept_as_the_host_says(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DatabaseSource(options())
    done: list[str] = []
    for name in ("close_if_unusable_or_obsolete", "close"):
        monkeypatch.setattr(connections["default"], name, lambda name=name: done.append(name))
    source.rest()
    assert done == ["close_if_unusable_or_obsolete"]
    # A thread that ends leaves none open.
    source.rest(last=True)
    assert done[1:] == ["close"]


# -- showing -----------------------------------------------------------------------------------


@pytest.fixture
def admin(admin_client: Client, settings: Any) -> Client:
    settings.ALLOWED_HOSTS = ["testserver"]
    return admin_client


@pytest.mark.django_db
def test_admin_shows_who_has_taken_the_flags_up(admin: Client) -> None:
    flags = CaptureFlags.objects.create(service_name="shop")
    page = f"{URL}{flags.pk}/change/"
    assert "No process of this service has been heard" in admin.get(page).content.decode()
    tag = etag(document("shop"))
    uptake.store(
        [report(1, tag), report(2, tag), report(3, '"old"'), report(4, tag, silent=100),
         report(5, ""), report(6, tag, service="other")]
    )  # fmt: skip
    shown = admin.get(page).content.decode()
    assert "2 of 4 running processes" in shown
    assert "1 has fallen silent" in shown
    assert "api-3" in shown
    assert "earlier ones" in shown
    assert "its settings&#x27; alone" in shown
    assert "(silent)" in shown
    assert "api-6" not in shown
    lines = admin.get(f"{URL}{flags.pk}/uptake/")
    assert "2 of 4 running processes" in lines.content.decode()
    assert "data-audit-complete" not in lines.content.decode()
    assert "no-store" in lines["Cache-Control"]
    assert "2 of 4" in admin.get(URL).content.decode()
    # A change is what they have not taken up.
    flags.sample_rate = 0.5
    flags.save()
    assert "0 of 4" in admin.get(URL).content.decode()
    uptake.store([report(n, etag(document("shop"))) for n in (1, 2, 3, 5)])
    lines = admin.get(f"{URL}{flags.pk}/uptake/")
    # Started at another moment: other processes.
    assert "4 of 8" in lines.content.decode()


@pytest.mark.django_db
def test_flags_of_every_service_are_for_those_without_their_own(admin: Client) -> None:
    every = CaptureFlags.objects.create(service_name="*")
    shop = CaptureFlags.objects.create(service_name="shop", enabled=False)
    uptake.store(
        [report(1, etag(every.document()), service="other"), report(2, etag(shop.document()))]
    )
    found = overviews([every, shop])
    assert (str(found[every.pk]), str(found[shop.pk])) == ("1 of 1", "1 of 1")
    assert str(overviews([every])[every.pk]) == "1 of 1"
    assert found[every.pk].complete


@pytest.mark.django_db
def test_the_list_asks_as_often_for_many_services_as_for_one(admin: Client) -> None:
    def questions() -> int:
        with CaptureQueriesContext(connection) as asked:
            assert admin.get(URL).status_code == 200
        return len(asked)

    CaptureFlags.objects.create(service_name="*")
    few = questions()
    for n in range(20):
        CaptureFlags.objects.create(service_name=f"service-{n}")
    assert questions() <= few + 1


@pytest.mark.django_db
def test_pages_stand_without_the_table(admin: Client) -> None:
    flags = CaptureFlags.objects.create(service_name="shop")
    with connection.execute_wrapper(Refusing()):
        assert "unknown" in admin.get(URL).content.decode()
        shown = admin.get(f"{URL}{flags.pk}/change/").content.decode()
        assert "manage.py migrate" in shown
        assert "manage.py migrate" in admin.get(f"{URL}{flags.pk}/uptake/").content.decode()


@pytest.mark.django_db
def test_many_processes_are_not_all_shown() -> None:
    flags = CaptureFlags.objects.create(service_name="shop")
    uptake.store([report(n) for n in range(1, MOST_SHOWN + 11)])
    (overview,) = overviews([flags]).values()
    assert (len(overview.shown), overview.more) == (MOST_SHOWN, 10)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s ago"), (3.2, "3 s ago"), (61, "1 min 1 s ago"), (7200, "120 min ago")],
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert ago(seconds) == said
