"""A program for tests: publish, be killed at a failpoint, come back; prints what is in the lake.

``python -m tests.unit.audit_sink.crashing FAILPOINT`` with AUDIT_DATA_DIR set; ``race`` in place of
a failpoint lets four workers do the same work at the same time. The parent touches nothing; each
step is a forked child, as workers of a pool are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import django

from tests.support import fork

EVENTS = 120
PRODUCERS = 12


def in_child(step: Callable[[], None]) -> int:
    """Run `step` in a fork; return its exit status."""
    return ended(start(step))


def ended(pid: int) -> int:
    """Wait for a fork; return its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(step: Callable[[], None]) -> int:
    """Run `step` in a fork; return its process id."""
    sys.stdout.flush()
    pid = fork()
    if pid == 0:
        status = 1
        try:
            step()
            status = 0
        except BaseException:  # noqa: BLE001 - a fork must not run on in pytest's name
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


def publish() -> None:
    from django.core.management import call_command

    from audit_logging.spool import Record
    from audit_publisher.conf import conf as publisher_conf
    from audit_publisher.eventlog import get_region, region_names
    from audit_publisher.testing import make_event, make_record

    call_command("migrate", verbosity=0)
    sites = ("1704989259133687000", "1704989474816248000", None, "elsewhere")
    records = [
        make_record(
            make_event(
                request_id=f"00000000-0000-4000-8000-{index:012}",
                site_id=sites[index % 4],
                endpoint_name=f"iac{index % 3}/v1/inventory",
            )
        )
        for index in range(EVENTS)
    ]
    poison = [Record(b"\0\0\0\0\1short", key=b"k", headers=records[0].headers)]
    # Some twice: worker redelivery.
    for region in region_names():
        for receipt in get_region(region).append(
            publisher_conf.DEFAULT_TOPIC,
            [
                *heartbeats(10, "open"),
                *records[:60],
                *poison,
                *records[40:],
                *heartbeats(30, "closed"),
                *records[:10],
                *heartbeats(20, "open"),
            ],
        ):
            assert receipt.error is None


def heartbeats(seq: int, state: str) -> list[Any]:
    """What every producer says at one moment."""
    import msgspec

    from audit_publisher.producer_records import parse_producer_record, to_record
    from audit_publisher.testing import make_producer_record

    said = [
        make_producer_record(producer_epoch=f"epoch-{number}", seq=seq, state=state)
        for number in range(PRODUCERS)
    ]
    return [
        to_record(parse_producer_record(msgspec.json.encode(one)), time.time_ns() // 1000)[1]
        for one in said
    ]


def work() -> None:
    from audit_sink.ingest.run import ingest_all

    for _ in range(3):
        ingest_all()


def crash(failpoint: str, nth: int, ahead: float) -> None:
    from audit_sink.failpoints import armed
    from audit_sink.ingest.run import ingest_all

    with armed(failpoint, f"kill:{nth}"):
        ingest_all(clock=lambda: time.time() + ahead)


def recover() -> None:
    from audit_sink.ingest.run import ingest_all
    from audit_sink.lake.ledger import ledger_problems
    from audit_sink.models import Batch, Producer
    from audit_sink.query.engine import query

    # The leases of the killed have run out by then.
    outcomes = ingest_all(clock=lambda: time.time() + 3600)
    rows = query("SELECT request_id, site FROM audit_logs").to_pylist()
    sys.stdout.write(
        json.dumps(
            {
                "errors": [one.error for one in outcomes.values() if one.error],
                "problems": [str(problem) for problem in ledger_problems()],
                "twice": [
                    k for k, n in Counter(row["request_id"] for row in rows).items() if n > 1
                ],
                "rows": len(rows),
                "producers": list(Producer.objects.values_list("seq", "state")),
                "sites": Counter(row["site"] for row in rows),
                "dead_lettered": sum(Batch.objects.values_list("dead_lettered", flat=True)),
                "takeovers": sum(
                    fence - 1 for fence in Batch.objects.values_list("fence", flat=True)
                ),
            }
        )
    )


def main() -> None:
    failpoint = sys.argv[1]
    os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"
    django.setup()
    assert in_child(publish) == 0
    if failpoint == "race":
        for pid in [start(work) for _ in range(4)]:
            assert ended(pid) == 0
        assert in_child(recover) == 0
        return
    for nth in (1, 2, 3):
        assert in_child(lambda: crash(failpoint, nth, nth * 100.0)) == 137  # noqa: B023
    assert in_child(recover) == 0


if __name__ == "__main__":
    main()
