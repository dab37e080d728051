"""Both clusters and one publisher for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.publisher.reading import Reader
from tests.integration.publisher.rig import QUICK, Publisher, Region, publishers, two_regions
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up
from tests.services.install import JAVA
from tests.services.kafka import JARS

Regions = tuple[Region, Region]


@pytest.fixture(scope="session")
def regions() -> Iterator[Regions]:
    missing = None
    try:
        JAVA.ensure()
        JARS.ensure()
    except Unavailable as error:
        missing = error
    if missing:
        give_up(missing)
    with two_regions() as made:
        yield made


@pytest.fixture(scope="session")
def reader(regions: Regions) -> Iterator[Reader]:
    made = Reader(regions)
    yield made
    made.close()


@pytest.fixture(scope="session")
def publisher(regions: Regions) -> Iterator[Publisher]:
    with publishers(Publisher(regions, options=QUICK)) as (made,):
        yield made
