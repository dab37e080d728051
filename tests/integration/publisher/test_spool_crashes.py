"""The publisher is killed while it spools and while it drains; its spool fills; nothing is lost."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.integration.publisher.clients import Clients
from tests.integration.publisher.conftest import Regions
from tests.integration.publisher.reading import Reader, check
from tests.integration.publisher.rig import QUICK, Publisher, publishers
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

#: More of them for a long hunt.
ROUNDS = int(os.environ.get("AUDIT_TEST_SPOOL_ROUNDS", "2"))
SPOOL_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def healed(regions: Regions, publisher: Publisher, reader: Reader) -> Iterator[None]:
    publisher.wait_until_up()
    reader.read()
    yield
    for region in regions:
        region.heal()


def spooling(publisher: Publisher, regions: Regions, records: int) -> None:
    """Cut both regions off, and return when so many records are in the spool."""
    for region in regions:
        region.proxy.refuse()
    eventually(lambda: publisher.spooled() >= records, 60, publisher.tail_log)


def reach(clients: Clients, publisher: Publisher, more: int) -> None:
    goal = clients.sent() + more
    eventually(lambda: clients.sent() >= goal, 60, publisher.tail_log, pause=0.002)


def drained(publisher: Publisher) -> None:
    eventually(lambda: publisher.spooled() == 0, 60, publisher.tail_log)


def test_killed_while_it_spools_and_while_it_drains(
    regions: Regions, publisher: Publisher, reader: Reader
) -> None:
    chance = random.Random()
    with Clients([publisher.port], rate=300) as clients:
        for number in range(ROUNDS):
            spooling(publisher, regions, 100)
            reach(clients, publisher, chance.randrange(1, 60))
            publisher.kill_workers()
            reach(clients, publisher, 30)
            left = chance.randrange(10, publisher.spooled())
            for region in regions:
                region.heal()
            eventually(
                lambda: publisher.spooled() <= left,  # noqa: B023
                60,
                publisher.tail_log,
                pause=0.005,
            )
            if number == 0:
                # The server as a whole; the others are its workers alone.
                publisher.kill()
                publisher.start()
            else:
                publisher.kill_workers()
    drained(publisher)
    check(clients.account, reader.read(), publisher)


def test_a_keys_order_outlives_the_spool(
    regions: Regions, publisher: Publisher, reader: Reader
) -> None:
    with Clients([publisher.port], invalid=False) as clients:
        reach(clients, publisher, 20)
        spooling(publisher, regions, 200)
        for region in regions:
            region.heal()
        # Others of the same keys come in all the time: they do not queue behind these.
        drained(publisher)
        reach(clients, publisher, 50)
    drained(publisher)
    promises = clients.account.promises.items()
    spooled = {name for name, each in promises if each.where[0] == "spooled"}
    assert len(spooled) >= 200
    found = reader.read(among=spooled)
    check(clients.account, found, publisher)
    assert not found.late, f"{len(found.late)} of {found.copies.total()}: {found.late[:5]}"


def test_a_full_spool_refuses_for_now_and_keeps_what_it_promised(
    regions: Regions, reader: Reader
) -> None:
    options = {**QUICK, "AUDIT_PUBLISHER_SPOOL_MAX_BYTES": str(SPOOL_BYTES)}
    with publishers(Publisher(regions, name="small", options=options)) as (publisher,):
        with Clients([publisher.port], padding=20_000, invalid=False) as clients:
            reach(clients, publisher, 20)
            for region in regions:
                region.proxy.refuse()
            answers = clients.account.answers
            eventually(lambda: answers[503, True] >= 20, 60, publisher.tail_log)
            eventually(lambda: publisher.get("/health/ready")["status"] == "failing", 20)
            for region in regions:
                region.heal()
            reach(clients, publisher, 20)
        drained(publisher)
        # Each of them says when to come again, and nothing else was said.
        assert {status for status, _ in answers} == {200, 503}
        assert not answers[503, False]
        assert len(clients.account.durable) == len(clients.account.promises)
        check(clients.account, reader.read(), publisher)
        refused = publisher.counted("audit_publisher_events_rejected_total", reason="no_storage")
        assert refused == clients.account.items["rejected"]
