"""Clients send while things break; in the end both clusters and the spool hold what was promised.

Every fault is made in the middle of traffic, and ended. Then it is read back, by request_id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.publisher.clients import Clients
from tests.integration.publisher.conftest import Regions
from tests.integration.publisher.reading import Reader, check
from tests.integration.publisher.rig import Publisher
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

#: Events that have to become durable before, during and after each fault.
SOME = 30

Fault = Callable[[Regions, Publisher], None]


def killed(regions: Regions, publisher: Publisher) -> None:
    regions[0].kill()


def stopped(regions: Regions, publisher: Publisher) -> None:
    regions[0].kafka.pause()


def cut_off(regions: Regions, publisher: Publisher) -> None:
    regions[0].proxy.drop()


def refused(regions: Regions, publisher: Publisher) -> None:
    regions[0].proxy.refuse()


def answers_lost(regions: Regions, publisher: Publisher) -> None:
    regions[0].proxy.lose_answers()


def slow(regions: Regions, publisher: Publisher) -> None:
    # More than a delivery may take, so that acknowledgements come too late.
    regions[0].proxy.slow(seconds=0.8)


def second_cut_off(regions: Regions, publisher: Publisher) -> None:
    regions[1].proxy.drop()


def both_cut_off(regions: Regions, publisher: Publisher) -> None:
    for region in regions:
        region.proxy.drop()


def both_lose_answers(regions: Regions, publisher: Publisher) -> None:
    for region in regions:
        region.proxy.lose_answers()


def worker_killed(regions: Regions, publisher: Publisher) -> None:
    publisher.kill_worker()


#: Processes of the publisher die in these, and with them what they had not counted yet.
CRASHES = {worker_killed}
#: Faults, and the regions that are given up for them.
FAULTS = {
    killed: ("primary",),
    stopped: ("primary",),
    cut_off: ("primary",),
    refused: ("primary",),
    answers_lost: ("primary",),
    slow: ("primary",),
    second_cut_off: ("secondary",),
    both_cut_off: ("primary", "secondary"),
    both_lose_answers: ("primary", "secondary"),
    worker_killed: (),
}


@pytest.fixture(autouse=True)
def healed(regions: Regions, publisher: Publisher) -> Iterator[None]:
    """Whatever a test leaves behind is over when the next begins."""
    yield
    for region in regions:
        region.heal()
    publisher.wait_until_up()
    eventually(lambda: publisher.spooled() == 0, 30, publisher.tail_log)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_promise_is_kept(
    fault: Fault, regions: Regions, publisher: Publisher, reader: Reader
) -> None:
    before = counters(publisher)
    given_up = {region: given_up_in(publisher, region) for region in FAULTS[fault]}
    with Clients([publisher.port]) as clients:
        reach(clients, publisher)
        fault(regions, publisher)
        for region, times in given_up.items():
            eventually(
                lambda: given_up_in(publisher, region) > times,  # noqa: B023
                30,
                publisher.tail_log,
            )
        reach(clients, publisher)
        for region in regions:
            region.heal()
        publisher.wait_until_up()
        back = published_in(publisher, "primary")
        eventually(lambda: published_in(publisher, "primary") > back, 30, publisher.tail_log)
    eventually(lambda: publisher.spooled() == 0, 30, publisher.tail_log)
    account = clients.account
    found = reader.read()
    check(account, found, publisher)
    assert account.refused
    after = counters(publisher)
    counted = {name: after[name] - before[name] for name in after}
    told = {name: account.items[name] for name in ("published", "spooled", "rejected")}
    if fault in CRASHES or account.unanswered:
        # Counted, but its sender never heard of it, and sent it again.
        assert all(counted[name] >= told[name] for name in told), (counted, told)
    else:
        assert {name: counted[name] for name in told} == told, account.answers
    assert counted["received"] == sum(counted[name] for name in told)
    assert counted["drained"] == counted["spooled"], "the spool is empty"


def reach(clients: Clients, publisher: Publisher) -> None:
    """Return when some more events are durable."""
    goal = clients.sent() + SOME
    eventually(lambda: clients.sent() >= goal, 30, publisher.tail_log)


def given_up_in(publisher: Publisher, region: str) -> float:
    return publisher.counted("audit_publisher_failovers_total", region=region)


def published_in(publisher: Publisher, region: str) -> float:
    return publisher.counted("audit_publisher_events_published_total", region=region)


def counters(publisher: Publisher) -> dict[str, float]:
    """What the publisher says of itself, over all of its processes."""
    return {
        "received": publisher.counted("audit_publisher_events_received_total"),
        "published": publisher.counted("audit_publisher_events_published_total"),
        "spooled": publisher.counted("audit_publisher_events_spooled_total"),
        "rejected": publisher.counted("audit_publisher_events_rejected_total"),
        "drained": publisher.counted("audit_publisher_spool_drained_total"),
    }


def test_connections_that_a_firewall_forgot(regions: Regions, publisher: Publisher) -> None:
    # Those made before stay dead without a word; new ones work at once.
    with Clients([publisher.port]) as clients:
        reach(clients, publisher)
        times = given_up_in(publisher, "primary")
        regions[0].proxy.drop()
        eventually(lambda: given_up_in(publisher, "primary") > times, 30, publisher.tail_log)
        regions[0].proxy.heal(old=False)
        back = published_in(publisher, "primary")
        eventually(lambda: published_in(publisher, "primary") > back + SOME, 20, publisher.tail_log)
