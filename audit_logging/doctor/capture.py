"""What is examined of an audited service: its settings, key, broker, publisher, folder, clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from django.core.checks import Tags, run_checks
from django.db import connections

from ..checks import check_delivery, check_folder, check_key, check_metrics, check_publisher
from ..checks.host import PUBLISHER_SECONDS, publisher_answers
from ..checks.registering import app_installed, positions
from ..conf import conf
from . import broker, database
from .clock import AHEAD, BEHIND, compare
from .examinations import Asked, Finding, examine, modules, of_checks, ok
from .folders import look_at_folder, look_at_secret


def audited() -> bool:
    """Whether this service records its requests, by settings that can be used."""
    return not conf.problems() and bool(conf.ENABLED) and bool(positions())


@examine("settings", "options, checks", seconds=30)
def settings(asked: Asked) -> Iterator[Finding]:
    """The system checks of our apps; with --deploy Django's own of deployments too."""
    apps = sorted(module.partition(".")[0] for module in modules())
    messages = run_checks(tags=apps)
    if asked.deploy:
        messages += run_checks(tags=[Tags.security], include_deployment_checks=True)
    yield from of_checks(messages)
    if not [each for each in messages if not each.is_silenced()]:
        yield ok(f"nothing wrong in what {', '.join(apps)} are told")


@examine("keys", "signing key")
def signing_key(asked: Asked) -> Iterator[Finding]:
    """The private key is there, and nobody else's; what is wrong with it the checks say."""
    if not audited() or conf.PRIVATE_KEY_PATH is None or list(check_key()):
        return
    path = conf.PRIVATE_KEY_PATH
    for file in sorted(path.glob("*.pem")) if path.is_dir() else [path]:
        yield from look_at_secret("PRIVATE_KEY_PATH", file)


@examine("publisher", "deliveries")
def publisher(asked: Asked) -> Iterator[Finding]:
    """It answers, knows our key, takes this service's events, and none is too large for it."""
    if not audited() or (conf.DELIVERY == "kafka" and conf.FLAGS_SOURCE != "publisher"):
        return
    if asked.deploy:
        yield from of_checks(check_publisher())
    answer = publisher_answers()
    wrong = list(of_checks(answer.messages()))
    yield from wrong
    if not wrong:
        signed = (
            f"knows the key of consumer {conf.CONSUMER_ID}"
            if conf.PRIVATE_KEY_PATH is not None
            else "asks for no signature"
        )
        yield ok(f"{_shown(conf.PUBLISHER_URL)} answers, {signed}, takes {conf.SERVICE_NAME}")
        if answer.max_event_bytes is not None:
            yield ok(
                f"it takes events of {answer.max_event_bytes:,} bytes; ours have "
                f"{conf.MAX_EVENT_BYTES:,} at most"
            )


@examine("clock", "publisher's", seconds=PUBLISHER_SECONDS + 3)
def publisher_clock(asked: Asked) -> Iterator[Finding]:
    """Signatures are refused when clocks differ."""
    if not audited() or conf.DELIVERY == "kafka":
        return
    before = time.time()
    answer = publisher_answers()
    if answer.time is not None:
        yield from compare(
            "the publisher", answer.time, before, time.time(), ahead=AHEAD, behind=BEHIND
        )


@examine("broker", "deliveries")
def deliveries_broker(asked: Asked) -> Iterator[Finding]:
    """Where the service hands its events to its workers."""
    if audited() and conf.DELIVERY != "direct":
        yield from of_checks(each for each in check_delivery() if each.id != "audit_logging.W009")
        yield from broker.look("AUDIT_LOGGING BROKER_URL", conf.broker_url())


@examine("queues", "deliveries")
def deliveries_queue(asked: Asked) -> Iterator[Finding]:
    """Batches that no worker has taken yet."""
    if audited() and conf.DELIVERY != "direct":
        yield from broker.depth("AUDIT_LOGGING BROKER_URL", conf.broker_url(), conf.CELERY_QUEUE)


@examine("queues", "local spools")
def spools(asked: Asked) -> Iterator[Finding]:
    """What waits on this host, and what was refused for good."""
    if not audited():
        return
    from ..spool import DurableQueue

    for name in ("capture-spool", "delivery-spool"):
        path = conf.DATA_DIR / f"{name}.sqlite3"
        if not path.exists():
            continue
        queue = DurableQueue(path, timeout=1.0)
        used = queue.used_bytes()
        queue.close()
        share = used / conf.SPOOL_MAX_BYTES
        if share > 0.5:
            yield Finding(
                "warning",
                f"{path} is filled by {share:.0%}.",
                "Bring back what is away: see the other lines, and manage.py audit_spool.",
            )
        else:
            yield ok(f"{name}: {used:,} bytes waiting")


@examine("folders", "capture DATA_DIR")
def folder(asked: Asked) -> Iterator[Finding]:
    """Spools and dead letters: as the checks see it, and how much room there is."""
    if not audited():
        return
    wrong = list(of_checks([*check_folder(), *check_metrics()]))
    yield from wrong
    if not wrong:
        yield from look_at_folder("AUDIT_LOGGING DATA_DIR", conf.DATA_DIR, 0)


def _needs_database() -> bool:
    """Whether anything here is in a database."""
    if app_installed("audit_publisher"):
        return True
    if not audited() or "database" not in (conf.FLAGS_SOURCE, conf.DEAD_LETTERS):
        return False
    # A service that has none keeps its dead letters in their file.
    return conf.FLAGS_SOURCE == "database" or any(
        connections[alias].vendor != "unknown" for alias in connections
    )


@examine("database", "connection, tables", seconds=15)
def databases(asked: Asked) -> Iterator[Finding]:
    """Flags, dead letters, consumers, routes, sites and the ledger."""
    if _needs_database():
        for alias in database.aliases():
            yield from database.look(alias)


@examine("clock", "database's")
def database_clock(asked: Asked) -> Iterator[Finding]:
    """Validity of keys, claims of the sink."""
    if _needs_database():
        for alias in database.aliases():
            yield from database.clock(alias)


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
