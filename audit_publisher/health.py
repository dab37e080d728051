"""Probes that mean something: alive, able to make events durable, started."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Any

from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from audit_logging.exceptions import SpoolError

from . import authentication, codec, routing
from .conf import PublisherSettings, conf
from .durable import control
from .durable.spool import Spool
from .exceptions import RegistryError
from .http.problems import answer
from .operating import topics
from .operating.bounded import Look
from .publish import get_publisher

logger = logging.getLogger(__name__)

#: Seconds that a probe may take: below the second that Kubernetes waits for it.
PATIENCE = 0.8
#: Seconds for which the last answer holds while the next one is not there: something hangs.
GOOD_FOR = 15.0

_began = time.monotonic()
_started = False
#: What the look is at, for whoever finds that it hangs.
_doing = ""


@require_safe
def live(request: HttpRequest) -> HttpResponse:
    """The process answers. Nothing outside it can make this fail: restarting would not help."""
    return answer({"status": "ok"})


@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """Some durable place takes events, and nothing is configured so that none ever would."""
    report = _report()
    return answer(_for(request, report), 200 if report["status"] != "failing" else 503)


@require_safe
def startup(request: HttpRequest) -> HttpResponse:
    """As `ready` with every topic in its place, until that has been true once.

    After STARTUP_SECONDS it waits no longer: a restart makes no topic and brings no region back,
    and `ready` keeps traffic away where that is right.
    """
    global _started
    if _started:
        return answer({"status": "ok"})
    report = _report()
    # Stricter than `ready`: a topic that is not there is a mistake found before traffic.
    _started = report["status"] != "failing" and not any(
        region["missing_topics"] for region in report["regions"].values()
    )
    if not _started and time.monotonic() - _began > conf.STARTUP_SECONDS:
        _started = True
        logger.error(
            "After %g s this is still wrong, and startup waits no longer: %s",
            conf.STARTUP_SECONDS,
            " ".join(report["problems"]),
        )
    return answer(_for(request, report), 200 if _started else 503)


class Said(str):
    """What is wrong, with all that is known of it.

    :ivar briefly: what everybody may know: settings and regions by name, and no address, path or
        word of another server.
    """

    briefly: str

    @classmethod
    def of(cls, briefly: str, detail: object) -> Said:
        """Return `briefly` with a detail that is for staff users and the log."""
        said = cls(f"{briefly} {detail}")
        said.briefly = briefly
        return said


def _for(request: HttpRequest, report: dict[str, Any]) -> dict[str, Any]:
    """The report as this caller may see it. Probes ask without a session, and without the database
    that a session is in."""
    if getattr(getattr(request, "user", None), "is_staff", False):
        return {**report, "problems": [str(each) for each in report["problems"]]}
    brief = [each.briefly if isinstance(each, Said) else each for each in report["problems"]]
    more = "Staff users see more here; so do the log and manage.py audit_doctor."
    return {**report, "problems": brief} | ({"more": more} if brief else {})


def _report() -> dict[str, Any]:
    """What :func:`readiness` says; in time, and never an error of its own."""
    said = _look.ask(PATIENCE, GOOD_FOR)
    if said is not None:
        return said
    publisher = get_publisher()
    taking = [
        region
        for region, state in publisher.states.items()
        if state.up and not publisher.is_shut(region)
    ]
    return {
        # Something beside the regions hangs, and these take events.
        "status": "degraded" if taking else "failing",
        "problems": [f"{_doing or 'It'} does not answer: {_look.seconds():.0f} s so far."],
        "regions": {
            region: {"up": region in taking, "missing_topics": list(state.missing_topics)}
            for region, state in publisher.states.items()
        },
    }


def _readiness() -> dict[str, Any]:
    try:
        return readiness()
    except Exception as error:
        logger.exception("The publisher cannot say whether it is ready.")
        return {
            "status": "failing",
            "problems": [f"{type(error).__name__}; the publisher's log says more."],
            "regions": {},
        }


_look = Look(_readiness)


def readiness() -> dict[str, Any]:
    """What works and what does not, each with the setting to look at. It may take its time.

    ``ok``: every region takes events. ``degraded``: events are durable, but not everywhere, or
    not all of them, or not where they should be. ``failing``: events would be refused, or the
    regions, which all answer, have no default topic. One service's missing topic does not take
    the others' publisher away.
    """
    _at("The publisher")
    publisher = get_publisher()
    publisher.start()
    failures: list[str] = []
    warnings: list[str] = []
    _at("Django's database")
    wanted = routing.topics()
    regions: dict[str, Any] = {}
    said: dict[str, topics.Answer] = {}
    urls = conf.region_urls()
    for region, url in urls.items():
        _at(f"Region {region}")
        state = publisher.states.get(region)
        # One that answers, and takes no record, is not there.
        up = state is not None and state.up and not publisher.is_shut(region)
        missing = list(state.missing_topics) if state else []
        regions[region] = {"up": up, "missing_topics": missing}
        setting = f"AUDIT_PUBLISHER_{region.upper()}_URL"
        if state is None:
            # A probe must answer quickly: the background looks, and this waits for it.
            failures.append(Said.of(f"{setting}: region {region} has not been looked at yet.", url))
        elif not up:
            detail = f"{url}: {state.error}"
            silent = "does not answer" if not state.up else "takes no record"
            warnings.append(Said.of(f"{setting}: region {region} {silent}.", detail))
        else:
            # Asked in the background: a region that hangs must not hold up a probe.
            if state.topics is not None:
                said[region] = state.topics
        warnings += [str(topics.missing(topic, region)) for topic in missing]
    wrong = [each for each in topics.problems(said, wanted) if each.kind in topics.HOLDS_UP]
    warnings += [str(each) for each in wrong if each.kind != "missing"]
    _at("The spool's disk")
    spool_problem = _spool_problem(publisher.spool.accepts())
    records, size = _spool_size(publisher.spool)
    drained = control.wishes().drained
    warnings += [
        f"Region {region} is drained in the admin (Publisher, Regions): nothing is sent there."
        for region in regions
        if region in drained
    ]
    answering = [each for name, each in regions.items() if each["up"] and name not in drained]
    usable = any(conf.DEFAULT_TOPIC not in each["missing_topics"] for each in answering)
    if len(answering) == len(regions) and not usable:
        # Nobody is away, and it is nowhere: a name that is wrong, rather than an outage.
        failures += [str(topics.missing(conf.DEFAULT_TOPIC, region)) for region in regions]
        warnings = [warning for warning in warnings if warning not in failures]
    if spool_problem:
        (warnings if usable else failures).append(spool_problem)
    _at("The schema registry (AUDIT_PUBLISHER_REGISTRY_URL)")
    for topic in wanted:
        try:
            codec.schema_ids.get(topic)
        except RegistryError as error:
            briefly = f"AUDIT_PUBLISHER_REGISTRY_URL: the schema of topic {topic} has no id yet."
            failures.append(Said.of(briefly, error))
            break
    if not (authentication.known() and routing.known()):
        failures.append(
            "Consumers, public keys and topic routes could not be read from Django's database "
            "even once."
        )
    return {
        "status": "failing" if failures else "degraded" if warnings else "ok",
        "problems": failures + warnings,
        "regions": regions,
        "spool": {"records": records, "bytes": size, "max_bytes": conf.SPOOL_MAX_BYTES},
        "time": int(time.time()),
    }


def _spool_size(spool: Spool) -> tuple[int, int]:
    try:
        return spool.size()
    except (SpoolError, OSError, sqlite3.Error):
        return 0, 0


def _spool_problem(problem: str) -> Said | None:
    if not problem:
        return None
    setting, _, detail = problem.partition(": ")
    return Said.of(f"{setting}: the spool takes nothing.", detail)


def _at(what: str) -> None:
    global _doing
    _doing = what


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _look
    if setting == PublisherSettings.prefix:
        _look = Look(_readiness)


setting_changed.connect(_reconfigure)
