"""`python -m benchmarks.publish.failover`: what becomes of events while the first region is gone.

The publisher, under its shipped configuration and with two processes, takes 1,000 events a second,
some alone and most in batches of 20, over two real clusters with a proxy before each. In each round
the first region is killed, stopped (SIGSTOP) or cut off (packets are dropped), and later revived.
In the end both clusters and the spool are read back, and compared with what clients were promised.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.capture.__main__ import machine
from benchmarks.capture.report import table
from tests.integration.publisher.clients import Account, Clients
from tests.integration.publisher.reading import Found, Reader
from tests.integration.publisher.rig import Publisher, Region, publishers, two_regions
from tests.support import eventually

#: Seconds of good health before each fault.
_HEALTHY = 3.0
#: Seconds in which nothing may go elsewhere before all is called back to normal, and at most.
_QUIET = 1.5
_PATIENCE = 90.0
_FIRST = "primary"


@dataclass
class Round:
    """One fault and its end; all times are seconds.

    :ivar slowest: from sending an event, the first time, to the answer that it is durable; of all
        that came to be from a second before the fault to its end.
    :ivar late: how many of them took more than three seconds.
    :ivar waited: the same from when an event was due, with the time in which its client still
        waited for the answer to the one before.
    :ivar first_back: from the revival to the first event that the first region took.
    :ivar all_back: from the revival to the last one that went elsewhere.
    """

    outage: float
    slowest: float
    late: int
    waited: float
    first_back: float
    all_back: float


@dataclass
class Fault:
    """All rounds of one fault.

    :ivar lost: promised events that are in no region and not in the spool.
    :ivar refused_yet_stored: events that were refused for good, and are stored all the same.
    :ivar twice: records beyond the first of their event.
    :ivar out_of_order: events that lie behind a later one of their key, in one region.
    :ivar apart: received - (published + spooled + rejected), as the publisher counts.
    """

    fault: str
    events: int = 0
    spooled: int = 0
    lost: int = 0
    refused_yet_stored: int = 0
    twice: int = 0
    out_of_order: int = 0
    apart: float = 0.0
    rounds: list[Round] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)


def _kill(region: Region) -> None:
    region.kill()


def _stop(region: Region) -> None:
    region.kafka.pause()


def _cut_off(region: Region) -> None:
    region.proxy.drop()


FAULTS: dict[str, Callable[[Region], None]] = {"kill": _kill, "stop": _stop, "cut": _cut_off}


def measure(
    *, faults: list[str], rounds: int, rate: float, outage: tuple[float, float]
) -> list[Fault]:
    """Measure some faults, so many rounds each."""
    found = []
    with two_regions() as regions, publishers(Publisher(regions)) as (publisher,):
        reader = Reader(regions)
        for name in faults:
            found.append(_measure(name, regions, publisher, reader, rounds, rate, outage))
            print(f"{name}: {_words(found[-1])}", flush=True)
        reader.close()
    return found


def _measure(
    name: str,
    regions: tuple[Region, Region],
    publisher: Publisher,
    reader: Reader,
    rounds: int,
    rate: float,
    outage: tuple[float, float],
) -> Fault:
    fault = Fault(name)
    with Clients(
        [publisher.port],
        singles=10,
        batches=9,
        rate=rate,
        single_rate=rate / 10,
        burst=20,
        padding=1200,
        invalid=False,
    ) as clients:
        for _ in range(rounds):
            time.sleep(_HEALTHY)
            fault.rounds.append(
                _round(FAULTS[name], regions[0], clients.account, random.uniform(*outage))
            )
    eventually(lambda: publisher.spooled() == 0, 120, publisher.tail_log)
    account, stored = clients.account, reader.read()
    _compare(fault, account, stored, publisher)
    return fault


def _round(
    fault: Callable[[Region], None], region: Region, account: Account, outage: float
) -> Round:
    began = time.monotonic()
    fault(region)
    time.sleep(outage)
    region.heal()
    revived = time.monotonic()
    last = _last_elsewhere(account, revived)
    while time.monotonic() < max(last, revived) + _QUIET:
        time.sleep(0.1)
        last = _last_elsewhere(account, revived)
        if time.monotonic() > revived + _PATIENCE:
            break
    took, had = account.seconds(began - 1, revived)
    back = [
        each.begun + (each.kept or 0.0) - revived
        for each in list(account.promises.values())
        if each.where[1] == _FIRST and each.begun >= revived
    ]
    return Round(
        revived - began,
        took[-1] if took else float("inf"),
        sum(seconds > 3 for seconds in took),
        had[-1] if had else float("inf"),
        min(back, default=float("inf")),
        max(0.0, last - revived),
    )


def _last_elsewhere(account: Account, since: float) -> float:
    """When the last event since then was promised that the first region does not have."""
    return max(
        (
            each.begun + each.kept
            for each in list(account.promises.values())
            if each.begun >= since and each.kept is not None and each.where[1] != _FIRST
        ),
        default=0.0,
    )


def _compare(fault: Fault, account: Account, stored: Found, publisher: Publisher) -> None:
    spooled = set(publisher.spooled_ids())
    there = set(stored.copies) | spooled
    fault.events = len(account.promises)
    fault.spooled = sum(each.where[0] == "spooled" for each in account.promises.values())
    fault.lost = len(account.durable - there)
    fault.refused_yet_stored = len(account.refused & there)
    fault.twice = stored.duplicates
    fault.out_of_order = len(stored.late)
    fault.answers = {str(status): count for (status, _), count in account.answers.items()}
    counted = {
        name: publisher.counted(f"audit_publisher_events_{name}_total")
        for name in ("received", "published", "spooled", "rejected")
    }
    fault.apart = counted.pop("received") - sum(counted.values())


_HEADS = (
    *("fault", "rounds", "events", "lost", "slowest to be durable, s", "later than 3 s"),
    "with its wait in the client",
    *("first event back, s", "all back, s", "twice", "spooled", "out of order"),
)


def _words(fault: Fault) -> str:
    return table(_HEADS, [_row(fault)]).splitlines()[-1]


def _row(fault: Fault) -> list[str]:
    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.1f} (most {max(values):.1f})"

    return [
        fault.fault,
        f"{len(fault.rounds)}",
        f"{fault.events:,}",
        f"{fault.lost}",
        spread([each.slowest for each in fault.rounds]),
        f"{sum(each.late for each in fault.rounds)}",
        spread([each.waited for each in fault.rounds]),
        spread([each.first_back for each in fault.rounds]),
        spread([each.all_back for each in fault.rounds]),
        f"{fault.twice:,}",
        f"{fault.spooled:,}",
        f"{fault.out_of_order}",
    ]


def main() -> None:
    """Measure, print a table, and write files where they are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish.failover")
    parser.description = __doc__
    parser.add_argument("--only", action="append", choices=FAULTS, help="may be given repeatedly")
    parser.add_argument("--rounds", type=int, default=20, help="of each fault")
    parser.add_argument("--rate", type=float, default=1000, help="events a second")
    parser.add_argument(
        "--outage", type=float, nargs=2, default=(4, 10), help="seconds, from and to"
    )
    parser.add_argument("--json", type=Path, help="write every figure there")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    found = measure(
        faults=arguments.only or list(FAULTS),
        rounds=arguments.rounds,
        rate=arguments.rate,
        outage=tuple(arguments.outage),
    )
    print("\n" + table(_HEADS, [_row(fault) for fault in found]))
    if arguments.json:
        about = {"machine": machine(), "when": time.strftime("%Y-%m-%d"), "rate": arguments.rate}
        text = json.dumps({**about, "failover": [asdict(fault) for fault in found]}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
