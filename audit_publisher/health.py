"""Probes that mean something: alive, able to make events durable, started."""

from __future__ import annotations

import logging
import time
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from . import authentication, codec, eventlog, routing
from .conf import conf
from .exceptions import RegistryError
from .problems import answer
from .publish import get_publisher

logger = logging.getLogger(__name__)

_started = False


@require_safe
def live(request: HttpRequest) -> HttpResponse:
    """The process answers. Nothing outside it can make this fail: restarting would not help."""
    return answer({"status": "ok"})


@require_safe
def ready(request: HttpRequest) -> HttpResponse:
    """Some durable place takes events, and nothing is configured wrongly."""
    report = _report()
    return answer(report, 200 if report["status"] != "failing" else 503)


@require_safe
def startup(request: HttpRequest) -> HttpResponse:
    """As `ready`, until that has been true once."""
    global _started
    if not _started:
        report = _report()
        # Stricter than `ready`: a topic that is not there is a mistake found before traffic.
        _started = report["status"] != "failing" and not any(
            region["missing_topics"] for region in report["regions"].values()
        )
        return answer(report, 200 if _started else 503)
    return answer({"status": "ok"})


def _report() -> dict[str, Any]:
    """What :func:`readiness` says; a probe's answer is never an error of its own."""
    try:
        return readiness()
    except Exception as error:
        logger.exception("The publisher cannot say whether it is ready.")
        return {
            "status": "failing",
            "problems": [f"{type(error).__name__}; the publisher's log says more."],
            "regions": {},
        }


def readiness() -> dict[str, Any]:
    """What works and what does not, each with the setting to look at.

    ``ok``: the first region takes events. ``degraded``: events are durable, but not where they
    should be. ``failing``: events would be refused, or no region that answers has the default
    topic. One service's missing topic does not take the others' publisher away.
    """
    publisher = get_publisher()
    publisher.start()
    failures: list[str] = []
    warnings: list[str] = []
    regions: dict[str, Any] = {}
    urls = conf.region_urls()
    for region in eventlog.region_names():
        state = publisher.states.get(region)
        up = state is not None and state.up
        missing = list(state.missing_topics) if state else []
        regions[region] = {"up": up, "missing_topics": missing}
        setting = f"AUDIT_PUBLISHER_{region.upper()}_URL"
        if state is None:
            # A probe must answer quickly: the background looks, and this waits for it.
            failures.append(f"{setting}: {urls[region]} has not been looked at yet.")
        elif not up:
            warnings.append(f"{setting}: {urls[region]} does not answer: {state.error}")
        warnings += [_missing_topic(topic, region) for topic in missing]
    spool_problem = publisher.spool.accepts()
    answering = [each for each in regions.values() if each["up"]]
    usable = any(conf.DEFAULT_TOPIC not in each["missing_topics"] for each in answering)
    if answering and not usable:
        failures += [_missing_topic(conf.DEFAULT_TOPIC, region) for region in regions]
        warnings = [warning for warning in warnings if warning not in failures]
    if spool_problem:
        (warnings if usable else failures).append(spool_problem)
    for topic in routing.topics():
        try:
            codec.schema_ids.get(topic)
        except RegistryError as error:
            failures.append(f"AUDIT_PUBLISHER_REGISTRY_URL: {error}")
            break
    if conf.SIGNATURE != "off" and not authentication.known():
        failures.append("Public keys could not be read from Django's database even once.")
    records, size = (0, 0) if spool_problem else publisher.spool.size()
    return {
        "status": "failing" if failures else "degraded" if warnings else "ok",
        "problems": failures + warnings,
        "regions": regions,
        "spool": {"records": records, "bytes": size, "max_bytes": conf.SPOOL_MAX_BYTES},
        "time": int(time.time()),
    }


def _missing_topic(topic: str, region: str) -> str:
    where = (
        "AUDIT_PUBLISHER_DEFAULT_TOPIC"
        if topic == conf.DEFAULT_TOPIC
        else "Topic routes in the admin"
    )
    return (
        f"{where}: region {region} has no topic {topic!r}. Correct the name, or create it with "
        "manage.py audit_topics --create"
    )
