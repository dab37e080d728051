"""Claims, schedule and ledger: who may do what, when, and whether it adds up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction

from audit_logging.breaker import Breaker
from audit_publisher.eventlog import get_region
from audit_publisher.exceptions import RegionUnavailable, UnknownTopic
from audit_sink.conf import conf
from audit_sink.exceptions import ClaimLost
from audit_sink.ingest import claims, schedule
from audit_sink.ingest.claims import Counts, Poison
from audit_sink.ingest.dedup import request_keys, take_ownership
from audit_sink.ingest.run import ingest
from audit_sink.ingest.schedule import due_lanes, enqueue_due, lanes
from audit_sink.ingest.turns import turn
from audit_sink.lake.ledger import ledger_problems
from audit_sink.metrics import LAG
from audit_sink.models import UNROUTABLE, Batch, LakeFile, Lane, Site, Turn

from .conftest import Clock, World

pytestmark = pytest.mark.django_db

NOW = 1_800_000_000.0


@pytest.fixture
def lane() -> Lane:
    return Lane.objects.create(sink="US", region="primary", topic="t", partition=0, start_offset=0)


def claimed(lane: Lane, start: int = 0, end: int = 10, owner: str = "a") -> Batch | None:
    return claims.claim(lane, start, end, owner=owner, now=NOW, read=end - start, taken=0)


def test_of_two_claims_from_one_offset_one_wins(lane: Lane) -> None:
    assert claimed(lane, 0, 10, "a") is not None
    assert claimed(lane, 0, 7, "b") is None
    assert Batch.objects.get().end_offset == 10


def test_an_empty_range_cannot_be_claimed(lane: Lane) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        Batch.objects.create(
            sink="US", region="p", topic="t", partition=0, start_offset=5, end_offset=5
        )


def test_a_claim_is_taken_over_when_its_lease_ran_out_and_the_former_owner_is_fenced_off(
    lane: Lane,
) -> None:
    old = claimed(lane)
    assert old is not None
    assert claims.take_over(old, owner="b", now=NOW + conf.LEASE_SECONDS - 1) is None
    new = claims.take_over(old, owner="b", now=NOW + 60)
    assert new is not None
    assert (new.owner, new.fence) == ("b", 2)
    # Somebody who saw the old state comes too late.
    assert claims.take_over(old, owner="c", now=NOW + 600) is None
    for attempt in (
        lambda: claims.renew(old, now=NOW),
        lambda: claims.plan(old, [Poison(1, "avro", "x")]),
        lambda: claims.finish(old, [], Counts(), lane=lane, now=NOW),
    ):
        with pytest.raises(ClaimLost, match="taken this claim over"):
            attempt()
    claims.release(old)
    claims.renew(new, now=NOW + 100)
    assert Batch.objects.get().lease_expires == NOW + 100 + conf.LEASE_SECONDS


def test_a_done_claim_stays_done(lane: Lane) -> None:
    batch = claimed(lane)
    assert batch is not None
    claims.finish(batch, [], Counts(), lane=lane, now=NOW)
    lane.refresh_from_db()
    assert lane.next_offset == 10
    with pytest.raises(ClaimLost):
        claims.finish(batch, [], Counts(), lane=lane, now=NOW)
    assert claims.take_over(batch, owner="b", now=NOW + 600) is None


def test_the_first_batch_to_record_an_id_owns_it_and_keeps_owning_it(lane: Lane) -> None:
    first, second = claimed(lane, 0, 10), claimed(lane, 10, 20)
    assert first is not None
    assert second is not None
    a, b, c = request_keys("US", ["a", "b", "c"], ["shop"] * 3)
    assert take_ownership(first, [a, b, a]) == [True, True, False]
    assert take_ownership(second, [b, c]) == [False, True]
    # Done again, in any order: the same answer.
    assert take_ownership(second, [c, b]) == [True, False]
    assert take_ownership(first, [a, b, a]) == [True, True, False]
    assert take_ownership(first, []) == []


def test_ids_of_two_sites_are_different() -> None:
    assert request_keys("US", ["a"], ["shop"]) != request_keys("CA", ["a"], ["shop"])


def test_services_that_share_an_id_are_stored_each() -> None:
    keys = request_keys("US", ["a", "a", "ab", "b", "a"], ["shop", "till", "c", "ca", "shop"])
    assert len(set(keys)) == 4
    assert keys[0] == keys[4]
    assert {len(key) for key in keys} == {16}


def test_many_ids_are_one_statement_and_one_question(
    lane: Lane, django_assert_max_num_queries: Callable
) -> None:
    batch = claimed(lane)
    assert batch is not None
    keys = request_keys("US", [str(n) for n in range(2000)], ["shop"] * 2000)
    with django_assert_max_num_queries(2):
        assert all(take_ownership(batch, keys))
    with django_assert_max_num_queries(2):
        assert all(take_ownership(batch, keys))


# -- schedule -----------------------------------------------------------------------------------


def due(world: World) -> list[str]:
    return [lane.sink for lane in due_lanes(world.clock) if lane.region == "primary"]


def test_a_lane_is_due_when_its_records_have_waited(world: World) -> None:
    assert due(world) == []
    world.publish(world.event())
    assert due(world) == []
    world.clock.advance(5)
    assert sorted(due(world)) == ["CA", "MX", "US", UNROUTABLE]
    # It is yielded once, though nobody has come yet.
    assert due(world) == []
    for lane in Lane.objects.filter(region="primary", partition=0):
        assert ingest(lane, clock=world.clock).state == "caught_up"
    assert due(world) == []
    assert len(world.rows()) == 1


def test_a_task_that_was_lost_is_sent_again(world: World) -> None:
    world.publish(world.event())
    due(world)
    world.clock.advance(5)
    assert due(world)
    world.clock.advance(59)
    assert due(world) == []
    world.clock.advance(1)
    assert due(world)


def test_enough_records_for_a_batch_do_not_wait(world: World, sink_options: Callable) -> None:
    sink_options(MAX_BATCH_RECORDS=5)
    due(world)
    world.publish(*(world.event() for _ in range(5)))
    assert "US" in due(world)
    ingest(world.lane("US"), clock=world.clock)
    assert len(world.rows()) == 5


def test_looking_again_at_others_records_becomes_rarer(
    world: World, sink_options: Callable
) -> None:
    sink_options(MAX_BATCH_RECORDS=5)
    due(world)
    world.publish(*(world.event("US") for _ in range(5)))
    assert "CA" in due(world)
    assert ingest(world.lane("CA"), clock=world.clock).state == "waiting"
    world.publish(world.event("US"))
    assert "CA" not in due(world)


def test_a_failing_lane_waits_however_much_there_is(
    world: World, sink_options: Callable, us: Site
) -> None:
    sink_options(MAX_BATCH_RECORDS=1)
    us.bucket = f"file://{world.folder}/not/there"
    us.save()
    world.publish(world.event())
    due(world)
    ingest(world.lane("US"), clock=world.clock)
    assert world.lane("US").failures == 1
    assert "US" not in due(world)
    world.clock.advance(5)
    assert "US" in due(world)


def test_a_paused_site_is_not_due(world: World, us: Site) -> None:
    us.paused = True
    us.save()
    world.publish(world.event())
    due(world)
    world.clock.advance(5)
    assert "US" not in due(world)


def test_the_lag_of_a_paused_site_grows(world: World, us: Site) -> None:
    us.paused = True
    us.save()
    world.publish(*(world.event() for _ in range(4)))
    assert "US" not in due(world)
    assert world.lane("US").high_watermark == 4
    world.publish(world.event())
    due(world)
    lane = world.lane("US")
    assert (lane.high_watermark, lane.next_offset) == (5, 0)
    assert LAG.labels(*lane.key)._value.get() == 5


def test_one_process_at_a_time_looks_for_work(world: World) -> None:
    world.publish(world.event())
    due(world)
    world.clock.advance(5)
    meanwhile: list[int] = []

    def send(*key: object) -> None:
        meanwhile.append(enqueue_due(lambda *key: None, clock=world.clock))

    assert enqueue_due(send, clock=world.clock) == 4
    assert meanwhile == [0, 0, 0, 0]


def test_a_turn_is_given_back_or_runs_out() -> None:
    clock = Clock()
    with turn("x", 10, clock) as first, turn("x", 10, clock) as second:
        assert (first, second) == (True, False)
    with turn("x", 10, clock) as slow, turn("y", 10, clock) as other:
        assert slow
        assert other
        clock.advance(10)
        with turn("x", 10, clock) as next_one:
            assert next_one
            Turn.objects.filter(name="x").update(until=clock.now + 5)
        # The one who took too long ends: what is not its own stays.
    assert Turn.objects.get(name="x").until == clock.now + 5


def test_a_dead_region_is_asked_once_and_then_left_alone_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_topics = ("one", "two")
    monkeypatch.setattr(schedule, "topics", lambda: (world.topic, *other_topics))
    now = [0.0]
    dead = get_region("primary")
    schedule._breakers[dead] = Breaker(2.0, 15.0, clock=lambda: now[0])
    asked: list[str] = []

    def no_answer(topic: str) -> int:
        asked.append(topic)
        raise RegionUnavailable("nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(dead, "partitions", no_answer)
        assert {lane.region for lane, _ in lanes()} == {"secondary"}
        assert asked == [world.topic]
        list(lanes())
        assert len(asked) == 1
        now[0] = 60.0
        # The healthy region's lanes come before the dead one is waited for.
        tick = lanes()
        lane, _ = next(tick)
        assert (lane.region, len(asked)) == ("secondary", 1)
        list(tick)
        assert len(asked) == 2
    now[0] = 120.0
    assert {lane.region for lane, _ in lanes()} == {"primary", "secondary"}


def test_a_topic_that_is_missing_is_no_dead_region(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "topics", lambda: ("missing", world.topic))
    log = get_region("primary")
    real = log.partitions

    def partitions(topic: str) -> int:
        if topic == "missing":
            raise UnknownTopic("There is no topic 'missing'.")
        return real(topic)

    monkeypatch.setattr(log, "partitions", partitions)
    for _ in range(2):
        assert "primary" in {lane.region for lane, _ in lanes()}


def test_an_idle_tick_is_a_few_queries(
    world: World, django_assert_max_num_queries: Callable
) -> None:
    due(world)
    with django_assert_max_num_queries(3):
        due(world)


def test_the_tasks_do_the_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from audit_sink import tasks

    sent: list[tuple] = []
    monkeypatch.setattr(tasks.ingest, "delay", lambda *key: sent.append(key))
    world.clock.now = __import__("time").time() - 60
    world.publish(world.event())
    tasks.schedule()
    Lane.objects.filter(high_watermark__gt=0).update(due_at=0)
    assert tasks.schedule() == len(sent) == 4
    assert [tasks.ingest(*key) for key in sent] == ["caught_up"] * 4
    assert tasks.ingest("XX", "primary", "t", 0) == "caught_up"
    assert len(world.rows()) == 1
    assert tasks.prune() == 0


def test_a_lane_that_could_not_be_enqueued_is_not_forgotten(world: World) -> None:
    def broken(*key: object) -> None:
        raise ConnectionError("the broker is down")

    world.publish(world.event())
    due(world)
    world.clock.advance(5)
    with pytest.raises(ConnectionError):
        enqueue_due(broken, clock=world.clock)
    assert len(due(world)) == 4


# -- ledger -------------------------------------------------------------------------------------


def kinds() -> set[str]:
    return {problem.kind for problem in ledger_problems()}


@pytest.fixture
def lake(world: World, sink_options: Callable) -> World:
    sink_options(MAX_BATCH_RECORDS=5)
    world.publish(*(world.event() for _ in range(20)))
    world.ingest()
    assert ledger_problems() == []
    return world


def a_file(world: World) -> Path:
    file = LakeFile.objects.first()
    assert file is not None
    return Path(file.bucket.removeprefix("file://")) / file.path


def test_a_gap_is_found(lake: World) -> None:
    middle = Batch.objects.get(sink="US", start_offset=5)
    LakeFile.objects.filter(batch=middle).delete()
    Batch.objects.filter(pk=middle.pk).update(end_offset=9, stored=0, taken=0)
    assert "gap" in kinds()


def test_an_overlap_is_found(lake: World) -> None:
    Batch.objects.filter(sink="US", start_offset=5).update(end_offset=11)
    assert kinds() == {"overlap"}


def test_a_ledger_that_does_not_begin_where_its_lane_does_is_found(lake: World) -> None:
    Lane.objects.filter(sink="US").update(start_offset=-5)
    assert kinds() == {"gap"}


def test_records_that_are_not_accounted_for_are_found(lake: World) -> None:
    Batch.objects.filter(sink="US", start_offset=5).update(duplicates=1)
    assert kinds() == {"counts"}


def test_a_missing_file_is_found(lake: World) -> None:
    a_file(lake).unlink()
    assert kinds() == {"missing"}


def test_an_altered_file_is_found(lake: World) -> None:
    file = a_file(lake)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    assert kinds() == {"altered"}
    assert {problem.kind for problem in ledger_problems(contents=False)} == set()
    file.write_bytes(data + b"x")
    assert {problem.kind for problem in ledger_problems(contents=False)} == {"altered"}


def test_a_file_that_the_ledger_does_not_know_is_found(lake: World) -> None:
    a_file(lake).with_name("stray.parquet").write_bytes(b"")
    assert kinds() == {"unknown_file"}
