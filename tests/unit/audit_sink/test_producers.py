"""Producer records in the ledger, and what is missing by producer and number."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import msgspec
import pytest
from django.core.management import call_command
from hypothesis import given
from hypothesis import strategies as st

from audit_logging.spool import Record
from audit_publisher.producer_records import parse_producer_record, to_record
from audit_publisher.testing import make_producer_record
from audit_sink import metrics
from audit_sink.failpoints import armed
from audit_sink.ingest.schedule import lanes
from audit_sink.ingest.upkeep import prune_producers
from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import UNROUTABLE, Batch, DeadLetter, Producer, Site
from audit_sink.query import completeness as module
from audit_sink.query.completeness import Numbers, completeness
from audit_sink.query.engine import query
from audit_sink.tasks import prune

from .conftest import World

Options = Callable[..., None]


def say(world: World, region: str = "primary", **fields: Any) -> Record:
    """Put a producer record into the event log."""
    fields = {"at": world.clock.now, "started_at": world.clock.now - 60, **fields}
    said = parse_producer_record(msgspec.json.encode(make_producer_record(**fields)))
    _, record = to_record(said, int(world.clock.now * 1e6))
    world.append([record], region=region)
    return record


def send(world: World, epoch: str, numbers: Iterable[int], **fields: Any) -> None:
    world.publish(*(world.event(producer_epoch=epoch, seq=n, **fields) for n in numbers))


# -- the ledger -----------------------------------------------------------------------------------


def test_a_record_is_a_row_of_the_ledger_and_none_of_the_lake(world: World) -> None:
    event = world.event(None)
    world.publish(event)
    say(world, producer_epoch="e1", seq=7, dropped={"buffer_full": 2}, skipped={"sampled": 4})
    world.ingest()
    assert world.ids() == [event["request_id"]]
    (row,) = Producer.objects.all()
    assert (row.service_name, row.epoch, row.seq, row.state) == ("inventory-api", "e1", 7, "open")
    assert (row.host, row.pid) == ("api-7", 4711)
    assert row.last_at.timestamp() == world.clock.now
    assert (row.dropped, row.skipped) == ({"buffer_full": 2}, {"sampled": 4})
    assert query("SELECT count(*) AS n FROM audit_logs").to_pylist() == [{"n": 1}]
    assert ledger_problems() == []
    assert world.letters() == []


def test_later_records_raise_it_earlier_and_repeated_ones_change_nothing(world: World) -> None:
    heartbeat = say(world, producer_epoch="e1", seq=7, dropped={"a": 1})
    world.ingest()
    say(world, producer_epoch="e1", seq=9, state="closed", dropped={"a": 3, "b": 1})
    world.ingest()
    world.clock.advance(60)
    world.append([heartbeat])
    world.append([heartbeat], region="secondary")
    say(world, producer_epoch="e1", seq=8, state="lost", dropped={"a": 2})
    say(world, producer_epoch="e1", seq=8, state="open")
    world.ingest()
    (row,) = Producer.objects.all()
    assert (row.seq, row.state, row.dropped) == (9, "closed", {"a": 3, "b": 1})


def test_the_same_epoch_of_two_services_is_two_producers(world: World) -> None:
    say(world, producer_epoch="e1", seq=7)
    say(world, producer_epoch="e1", seq=70, service_name="orders-api")
    world.ingest()
    found = Producer.objects.order_by("seq").values_list("service_name", "seq")
    assert list(found) == [("inventory-api", 7), ("orders-api", 70)]


def test_where_no_site_takes_what_names_none_it_is_no_dead_letter(world: World) -> None:
    Site.objects.update(takes_unlabelled=False)
    before = metrics.PRODUCER_RECORDS.labels(UNROUTABLE)._value.get()
    say(world, producer_epoch="e1", seq=7)
    world.publish(world.event(None))
    world.ingest()
    assert Producer.objects.get().seq == 7
    assert len(world.letters()) == 1
    assert metrics.PRODUCER_RECORDS.labels(UNROUTABLE)._value.get() == before + 1
    assert ledger_problems() == []


def test_one_that_cannot_be_read_is_a_dead_letter_and_stops_nobody(world: World) -> None:
    good = say(world, producer_epoch="e1", seq=7)
    for value in (b"{", b"[]", b"", good.value.replace(b'"seq":7', b'"seq":-7')):
        world.append([Record(value, good.key, good.headers, good.timestamp)])
    say(world, producer_epoch="e1", seq=8)
    world.ingest()
    assert Producer.objects.get().seq == 8
    assert set(DeadLetter.objects.values_list("reason", flat=True)) == {"framing", "json"}
    assert len(world.letters()) == 4
    assert ledger_problems() == []


def test_records_count_for_the_bounds_of_a_range(world: World, sink_options: Options) -> None:
    sink_options(MAX_BATCH_RECORDS=5)
    for number in range(12):
        say(world, producer_epoch="e1", seq=number)
    world.ingest()
    assert Producer.objects.get().seq == 11
    sizes = Batch.objects.filter(sink="US", read__gt=0).values_list("read", flat=True)
    assert sorted(sizes) == [2, 5, 5]


@pytest.mark.parametrize("point", ["after_claim", "after_dead_letter", "after_upload"])
def test_a_range_that_is_done_again_says_the_same(world: World, point: str) -> None:
    world.publish(world.event(None, producer_epoch="e1", seq=0))
    say(world, producer_epoch="e1", seq=7)
    with armed(point):
        world.ingest()
    assert not Producer.objects.exists()
    world.clock.advance(3600)
    world.ingest()
    assert Producer.objects.get().seq == 7
    assert len(world.rows()) == 1


def test_records_wait_for_a_paused_site(world: World, us: Site) -> None:
    us.paused = True
    us.save()
    say(world, producer_epoch="e1", seq=7)
    world.ingest()
    assert not Producer.objects.exists()
    us.paused = False
    us.save()
    world.ingest()
    assert Producer.objects.get().seq == 7


def test_producers_are_forgotten_long_after_they_were_last_heard_of(world: World) -> None:
    say(world, producer_epoch="old", seq=7)
    world.clock.advance(89 * 86_400)
    say(world, producer_epoch="new", seq=7)
    world.ingest()
    assert prune_producers(clock=world.clock) == 0
    world.clock.advance(2 * 86_400)
    assert prune_producers(clock=world.clock) == 1
    assert Producer.objects.get().epoch == "new"
    # By the task that beat starts every night.
    Producer.objects.update(last_at=datetime.fromtimestamp(0, UTC))
    prune()
    assert not Producer.objects.exists()


# -- what is missing ------------------------------------------------------------------------------


def checked(world: World, **options: Any) -> dict[str, Numbers]:
    world.ingest()
    options.setdefault("days", 7)
    found = completeness(clock=world.clock, **options)
    return {each.epoch: each for each in found.incomplete}


def test_gaps_are_named_at_the_start_in_the_middle_and_at_the_end(world: World) -> None:
    send(world, "e1", [*range(2, 5), *range(7, 90), *range(92, 200)])
    say(world, producer_epoch="e1", seq=210, state="lost")
    world.ingest()
    world.clock.advance(900)
    (found,) = checked(world).values()
    assert found.ranges == [(0, 1), (5, 6), (90, 91), (200, 209)]
    assert (found.missing, found.stored, found.unexplained) == (16, 194, 16)
    assert "0 to 1, 5 to 6, 90 to 91, 200 to 209" in str(found)
    assert "killed" in str(found)


def test_what_is_complete_is_not_told(world: World) -> None:
    send(world, "e1", reversed(range(130)))
    send(world, "e2", range(3), site="CA")
    send(world, "e2", range(3, 6), site="MX")
    say(world, producer_epoch="e1", seq=130, state="closed")
    say(world, producer_epoch="e2", seq=6, state="lost")
    world.ingest()
    world.clock.advance(900)
    found = completeness(clock=world.clock)
    assert (found.checked, found.stored, found.incomplete) == (2, 136, [])
    assert found.states == {"closed": 1, "lost": 1}


def test_a_producer_without_a_single_row_is_missing_whole(world: World) -> None:
    say(world, producer_epoch="e1", seq=3, state="lost")
    world.ingest()
    world.clock.advance(900)
    assert checked(world)["e1"].ranges == [(0, 2)]


def test_known_drops_are_told_apart(world: World) -> None:
    send(world, "e1", [0, 1, 4])
    say(world, producer_epoch="e1", seq=5, state="closed", dropped={"buffer_full": 2})
    world.ingest()
    world.clock.advance(900)
    (found,) = checked(world).values()
    assert (found.missing, found.unexplained) == (2, 0)
    assert "2 buffer_full" in str(found)
    assert "without a reason" not in str(found)


def test_an_open_producer_is_compared_up_to_what_must_have_arrived(world: World) -> None:
    send(world, "e1", [0, 1, 3])
    say(world, producer_epoch="e1", seq=6)
    world.ingest()
    assert checked(world) == {}, "all of it may still be on its way"
    world.clock.advance(900)
    # A new row does not make the older ones less late.
    send(world, "e1", [9])
    (found,) = checked(world).values()
    assert found.ranges == [(2, 2), (4, 5)]
    assert (found.compared, found.given) == (6, 10)
    assert "compared up to number 5: later ones may be on their way" in str(found)
    # Its heartbeat was lost, but rows tell the time as well.
    world.clock.advance(900)
    (found,) = checked(world).values()
    assert found.ranges == [(2, 2), (4, 8)]


def test_one_that_has_just_ended_is_given_the_time_to_arrive(world: World) -> None:
    say(world, producer_epoch="e1", seq=3, state="closed")
    assert checked(world) == {}
    assert checked(world, grace=0)["e1"].missing == 3
    world.clock.advance(900)
    assert checked(world)["e1"].missing == 3


def test_a_number_stored_twice_hides_no_missing_one(world: World) -> None:
    send(world, "e1", [0, 1, 1, 3])
    say(world, producer_epoch="e1", seq=4, state="closed")
    assert checked(world, grace=0)["e1"].ranges == [(2, 2)]


def test_rows_of_another_service_fill_no_gap(world: World) -> None:
    send(world, "e1", [0, 2])
    send(world, "e1", [1], service_name="orders-api")
    say(world, producer_epoch="e1", seq=3, state="closed")
    found = completeness(clock=world.clock, grace=0) if world.ingest() else None
    assert found is not None
    by_service = {each.service: each.ranges for each in found.incomplete}
    assert by_service["inventory-api"] == [(1, 1)]


def test_rows_without_a_record_are_compared_by_themselves(world: World) -> None:
    send(world, "e1", [1, 2, 5])
    world.publish(world.event(producer_epoch=None, seq=None))
    assert checked(world, grace=0, days=0)["e1"].ranges == [(0, 0), (3, 4)]
    # With only part of the time looked at, nobody knows what came before.
    assert checked(world, grace=0)["e1"].ranges == [(3, 4)]
    assert checked(world, grace=0)["e1"].state == "unreported"


def test_what_is_long_ago_is_left_alone(world: World) -> None:
    send(world, "old", [1])
    say(world, producer_epoch="old", seq=2, state="lost")
    world.ingest()
    world.clock.advance(10 * 86_400)
    send(world, "new", [0])
    say(world, producer_epoch="new", seq=2, state="lost")
    assert set(checked(world, grace=0)) == {"new"}
    assert set(checked(world, grace=0, days=0)) == {"old", "new"}


def test_a_long_life_is_compared_from_its_beginning(world: World) -> None:
    send(world, "e1", [0, 2])
    world.ingest()
    began = world.clock.now
    world.clock.advance(30 * 86_400)
    send(world, "e1", [3])
    say(world, producer_epoch="e1", seq=4, state="closed", started_at=began)
    assert checked(world, grace=0)["e1"].ranges == [(1, 1)]


def test_numbers_without_end_cost_no_memory(world: World) -> None:
    """What somebody makes up is counted, not looped over."""
    send(world, "e1", [0, 2**60])
    say(world, producer_epoch="e1", seq=2**62, state="closed")
    found = checked(world, grace=0)["e1"]
    assert found.missing == 2**62 - 2
    assert found.ranges == [(1, 2**60 - 1), (2**60 + 1, 2**62 - 1)]


def test_only_so_many_ranges_are_told_and_all_are_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RANGES", 30)
    send(world, "e1", range(0, 100, 2))
    say(world, producer_epoch="e1", seq=100, state="closed")
    found = checked(world, grace=0)["e1"]
    assert (found.missing, len(found.ranges)) == (50, 30)
    assert str(found).count(",") > 20
    assert "and 30 more" in str(found)


def test_many_producers_are_looked_at_in_groups(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5)
    for index in range(6):
        send(world, f"e{index}", [0, 2, 3])
        say(world, producer_epoch=f"e{index}", seq=4, state="lost")
    found = checked(world, grace=0)
    assert {epoch: each.ranges for epoch, each in found.items()} == {
        f"e{index}": [(1, 1)] for index in range(6)
    }


@given(st.sets(st.integers(0, 300)), st.integers(0, 300), st.integers(0, 300))
def test_bits_and_ranges_agree_with_a_plain_count(there: set[int], start: int, end: int) -> None:
    words: dict[int, int] = {}
    for number in there:
        words[number // 64] = words.get(number // 64, 0) | 1 << number % 64
    numbers = Numbers("s", "e", start=start, compared=end)
    reached = start
    for word in sorted(words):
        first, last = max(word * 64, start), min(word * 64 + 64, end)
        if first >= last:
            continue
        module._add(numbers, reached, first)
        module._add_unset(numbers, words[word], first, last)
        reached = last
    module._add(numbers, reached, end)
    missing = [n for n in range(start, end) if n not in there]
    assert [n for a, b in numbers.ranges for n in range(a, b + 1)] == missing
    assert numbers.missing == len(missing)
    assert all(b + 1 < c for (_, b), (c, _) in itertools.pairwise(numbers.ranges))


# -- the command and admin ------------------------------------------------------------------------


def verify(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("audit_verify", *arguments, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_the_command_names_what_is_missing_and_fails(world: World) -> None:
    world.clock.now = time.time()
    send(world, "e1", [0, 1, 4])
    say(world, producer_epoch="e1", seq=6, state="lost", dropped={"buffer_full": 1})
    world.ingest()
    assert verify()[0] == 0, "within the grace"
    status, text = verify("--grace", "0")
    assert status == 1
    assert "inventory-api e1 (api-7, pid 4711, killed)" in text
    assert "2 to 3, 5" in text
    assert "1 buffer_full" in text
    assert "2 without a reason: lost, or still in a spool, a broker or among dead letters" in text
    status, text = verify("--grace", "0", "--json")
    document = json.loads(text)
    assert (status, document["ok"], document["problems"]) == (1, False, [])
    (found,) = document["producers"]["incomplete"]
    assert found["missing_ranges"] == [[2, 3], [5, 5]]
    assert (found["missing"], found["unexplained"], found["state"]) == (3, 2, "lost")
    status, text = verify("--grace", "0", "--quick", "--json")
    assert (status, "producers" in json.loads(text)) == (0, False)


def test_the_command_is_content_when_every_loss_has_a_reason(world: World) -> None:
    world.clock.now = time.time()
    send(world, "e1", [0, 1])
    say(world, producer_epoch="e1", seq=3, state="closed", dropped={"spool_full": 1})
    world.ingest()
    status, text = verify("--grace", "0")
    assert status == 0
    assert "1 spool_full" in text
    assert json.loads(verify("--grace", "0", "--json")[1])["ok"] is True


def test_the_command_says_that_records_wait(world: World) -> None:
    world.clock.now = time.time()
    send(world, "e1", [0, 2])
    say(world, producer_epoch="e1", seq=3, state="lost")
    world.ingest()
    send(world, "e1", [1])
    list(lanes())
    assert "1 records wait in the event log" in verify("--grace", "0")[1]


def test_a_file_that_cannot_be_read_is_told_and_not_a_traceback(world: World) -> None:
    from audit_sink.models import LakeFile

    world.clock.now = time.time()
    send(world, "e1", [0])
    world.ingest()
    (file,) = LakeFile.objects.all()
    path = file.bucket.removeprefix("file://") + "/" + file.path
    with open(path, "r+b") as stream:  # noqa: PTH123
        stream.truncate(10)
    status, text = verify("--json")
    assert status == 1
    kinds = [each["kind"] for each in json.loads(text)["problems"]]
    assert kinds == ["altered", "unreadable"]


def test_admin_shows_producers_and_changes_none(world: World, admin_client: Any) -> None:
    say(world, producer_epoch="e1", seq=1234, dropped={"buffer_full": 2})
    world.ingest()
    page = admin_client.get("/admin/audit_sink/producer/")
    assert page.status_code == 200
    assert "1,234" in page.content.decode()
    assert "2 buffer_full" in page.content.decode()
    assert admin_client.get("/admin/audit_sink/producer/add/").status_code == 403
    pk = Producer.objects.get().pk
    assert admin_client.post(f"/admin/audit_sink/producer/{pk}/delete/").status_code == 403
