"""Pytest fixtures: one server of each kind per session, started by the first test that asks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import pytest

from tests.services import install
from tests.services.base import Service
from tests.services.errors import Unavailable
from tests.services.gcs import Gcs
from tests.services.kafka import Kafka
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ
from tests.services.redis import Redis
from tests.services.registry import Registry

S = TypeVar("S", bound=Service)

FIXTURES = frozenset(
    {
        "kafka_primary",
        "kafka_secondary",
        "schema_registry",
        "redis_server",
        "rabbitmq_server",
        "postgres_server",
        "gcs_server",
    }
)


def give_up(error: Unavailable, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """A part that cannot be had: a named skip for a person, a failure in CI."""
    if environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@contextmanager
def serve(service: S) -> Iterator[S]:
    """Start a service for a test, and stop it afterwards; for servers that a test has alone."""
    missing = None
    try:
        service.start()
    except Unavailable as error:
        missing = error
    if missing:
        give_up(missing)  # outside the handler, so that its message stands alone
    try:
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def kafka_primary() -> Iterator[Kafka]:
    with serve(Kafka("primary")) as service:
        yield service


@pytest.fixture(scope="session")
def kafka_secondary() -> Iterator[Kafka]:
    with serve(Kafka("secondary")) as service:
        yield service


@pytest.fixture(scope="session")
def schema_registry() -> Iterator[Registry]:
    with serve(Registry()) as service:
        yield service


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    with serve(Redis()) as service:
        yield service


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ]:
    with serve(RabbitMQ()) as service:
        yield service


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    with serve(Postgres()) as service:
        yield service


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Gcs]:
    with serve(Gcs()) as service:
        yield service


def pytest_configure(config: pytest.Config) -> None:
    """Let the one line that tells of an installation through: it may take a minute."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return

    def announce(line: str) -> None:
        with capture.global_and_fixture_disabled():
            sys.stderr.write(f"\n{line}\n")
            sys.stderr.flush()

    install.announce = announce


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show the end of each server's log beneath a test that failed while using it."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Service) and (log := value.tail_log()):
                report.sections.append((f"end of the log of {value.name}", log))
