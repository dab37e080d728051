"""Fixtures of the capture tier's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_logging import metrics
from audit_logging.conf import LoggingSettings
from audit_logging.event import AuditEvent
from audit_logging.testing import recorded_events
from tests.unit.audit_logging import service


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., LoggingSettings]:
    """Make options by name, with a folder of the test's own."""

    def make(**values: Any) -> LoggingSettings:
        values.setdefault("DATA_DIR", tmp_path / "data")
        values.setdefault("SERVICE_NAME", "shop")
        return LoggingSettings({f"AUDIT_LOGGING_{name}": str(v) for name, v in values.items()})

    return make


@pytest.fixture
def counted() -> Callable[..., float]:
    """How much a counter has grown since the test began."""
    before = {m.name: dict(getattr(m, "_values", {})) for m in metrics.METRICS}

    def grown(metric: Any, **labels: str) -> float:
        if not labels and metric.labels:
            return metric.value() - sum(before[metric.name].values())
        return metric.value(**labels) - before[metric.name].get(metric._key(labels), 0.0)

    return grown


@pytest.fixture
def audited(settings: Any, tmp_path: Path) -> Any:
    """The small service of service.py, audited by flags in its settings."""
    settings.ROOT_URLCONF = service.__name__
    settings.MIDDLEWARE = [service.AUDIT]
    settings.AUDIT_LOGGING = {
        "SERVICE_NAME": "shop",
        "FLAGS_SOURCE": "settings",
        "DATA_DIR": tmp_path / "capture",
    }
    service.seen.clear()
    return settings


@pytest.fixture
def events(audited: Any) -> Iterator[list[AuditEvent]]:
    """What was recorded."""
    with recorded_events() as recorded:
        yield recorded


@pytest.fixture
def no_internal_errors(counted: Callable[..., float]) -> Iterator[None]:
    """Our own failures are kept from the service, but not from its tests."""
    yield
    assert counted(metrics.internal_errors) == 0, sys.exc_info()
