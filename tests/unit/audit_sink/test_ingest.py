"""From the event log to the right bucket: rotation, duplicates, poison, failures, recovery."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_logging.spool import Record
from audit_publisher.eventlog import get_region
from audit_publisher.exceptions import RegionUnavailable
from audit_sink.exceptions import RangeUnavailable
from audit_sink.failpoints import armed
from audit_sink.ingest.run import ingest, ingest_all
from audit_sink.ingest.schedule import lanes
from audit_sink.ingest.upkeep import accept_lost, merge_idle
from audit_sink.lake.ledger import ledger_problems
from audit_sink.models import UNROUTABLE, Batch, DeadLetter, LakeFile, Lane, SeenRequest, Site

from .conftest import SITES, World

Options = Callable[..., None]


def test_each_site_gets_its_own_rows_in_its_own_bucket(world: World) -> None:
    events = {site: world.event(site) for site in ("US", "CA", "MX")}
    unlabelled = world.event(None)
    world.publish(*events.values(), unlabelled)
    world.ingest()
    assert world.ids("US") == sorted([events["US"]["request_id"], unlabelled["request_id"]])
    assert world.ids("CA") == [events["CA"]["request_id"]]
    assert world.ids("MX") == [events["MX"]["request_id"]]
    for file in LakeFile.objects.all():
        assert file.bucket.endswith(f"/buckets/{file.site.lower()}")
    assert ledger_problems() == []


def test_a_row_holds_what_was_sent(world: World) -> None:
    event = world.event(headers={"WM-Site-Id": SITES["CA"], "x": "ü"}, site_id=None, user="ann")
    world.publish(event)
    world.ingest()
    (row,) = world.rows("CA")
    for name in ("request_id", "path", "method", "request_body", "response_code", "user", "seq"):
        assert row[name] == event[name], name
    assert row["request_ts"].timestamp() == pytest.approx(event["request_ts"])
    assert dict(row["headers"])["x"] == "ü"


def test_files_are_split_by_service_date_and_endpoint(world: World) -> None:
    day = 86_400
    world.publish(
        world.event(),
        world.event(service_name="007"),
        world.event(endpoint_name="dsd/v1/shipments/<id>"),
        world.event(request_ts=world.clock.now - day),
    )
    world.ingest()
    parts = {(f.service, f.date.isoformat(), f.endpoint) for f in LakeFile.objects.all()}
    assert len(parts) == 4
    assert ("inventory-api", "2027-01-15", "dsd") in parts
    assert ("inventory-api", "2027-01-14", "iac") in parts
    assert all(path.startswith("events/service=") for path in paths())


def paths() -> list[str]:
    return list(LakeFile.objects.values_list("path", flat=True))


# -- rotation -----------------------------------------------------------------------------------


def test_a_range_waits_until_its_oldest_record_is_due(world: World) -> None:
    world.publish(world.event())
    world.clock.advance(4.9)
    assert world.ingest(flush=False)[f"US primary {world.topic}/0"].state == "waiting"
    assert not Batch.objects.exists()
    world.clock.advance(0.1)
    world.ingest(flush=False)
    assert len(world.rows()) == 1


def test_records_from_a_clock_that_is_ahead_are_flushed_all_the_same(world: World) -> None:
    world.clock.advance(3600)
    world.publish(world.event())
    world.clock.advance(-3600)
    world.ingest(flush=False)
    assert not Batch.objects.exists()
    world.clock.advance(5)
    world.ingest(flush=False)
    assert len(world.rows()) == 1


def test_a_full_range_does_not_wait(world: World, sink_options: Options) -> None:
    sink_options(MAX_BATCH_RECORDS=10)
    world.publish(*(world.event() for _ in range(25)))
    world.ingest(flush=False)
    ranges = Batch.objects.filter(sink="US").order_by("start_offset")
    assert list(ranges.values_list("start_offset", "end_offset")) == [(0, 10), (10, 20)]
    world.clock.advance(5)
    world.ingest(flush=False)
    assert len(world.ids()) == 25
    assert ledger_problems() == []


def test_a_range_is_bounded_by_bytes(world: World, sink_options: Options) -> None:
    sink_options(MAX_BATCH_BYTES=10_000)
    world.publish(*(world.event(request_body="x" * 4000) for _ in range(5)))
    world.publish(world.event(request_body="x" * 50_000))
    world.ingest()
    batches = Batch.objects.filter(sink="US").order_by("start_offset")
    assert list(batches.values_list("taken", flat=True)) == [2, 2, 1, 1]
    assert len(world.ids()) == 6


def test_a_range_is_bounded_by_what_is_read_of_others(world: World, sink_options: Options) -> None:
    sink_options(MAX_SCAN_RECORDS=10)
    world.publish(*(world.event("US") for _ in range(15)), world.event("CA"))
    world.ingest()
    batches = Batch.objects.filter(sink="CA").order_by("start_offset")
    assert list(batches.values_list("read", "taken")) == [(10, 0), (6, 1)]


# -- duplicates ---------------------------------------------------------------------------------


def test_one_row_for_a_request_id_in_a_batch_across_batches_and_regions(world: World) -> None:
    (record,) = world.publish(world.event())
    world.append([record, record])
    world.append([record], region="secondary")
    world.ingest()
    world.append([record])
    # Another partition: the same id under another key.
    world.append([Record(record.value, b"other key 1", record.headers, record.timestamp)])
    world.ingest()
    assert len(world.rows()) == 1
    us = Batch.objects.filter(sink="US")
    assert sum(us.values_list("duplicates", flat=True)) == 5
    assert ledger_problems() == []


def test_the_same_id_in_two_sites_is_a_row_of_each(world: World) -> None:
    same = str(uuid.uuid4())
    world.publish(world.event("US", request_id=same), world.event("CA", request_id=same))
    world.ingest()
    assert world.ids("US") == world.ids("CA") == [same]


def test_reading_the_whole_log_again_adds_nothing(world: World) -> None:
    records = world.publish(*(world.event() for _ in range(50)))
    world.ingest()
    before = world.ids()
    world.append(records)
    world.ingest()
    assert world.ids() == before


def test_ids_are_forgotten_after_their_days(world: World, sink_options: Options) -> None:
    from audit_sink.ingest.dedup import prune

    world.publish(world.event())
    world.ingest()
    world.clock.advance(29 * 86_400)
    assert prune(clock=world.clock) == 0
    world.clock.advance(2 * 86_400)
    assert prune(clock=world.clock) == 1
    assert not SeenRequest.objects.exists()


# -- poison -------------------------------------------------------------------------------------


def test_poison_goes_to_the_dead_letters_with_its_position_and_cause(world: World) -> None:
    good = world.publish(world.event(), world.event())
    bad = Record(good[0].value[:40], good[0].key, good[0].headers, good[0].timestamp)
    world.append([bad])
    world.publish(world.event())
    world.ingest()
    assert len(world.rows()) == 3
    (letter,) = world.letters()
    assert (letter.key, letter.value) == (bad.key, bad.value)
    headers = dict(letter.headers)
    assert headers.items() >= dict(bad.headers).items()
    assert headers["__connect.errors.topic"] == world.topic.encode()
    assert headers["__connect.errors.partition"] == b"0"
    assert headers["__connect.errors.offset"] == b"2"
    assert headers["__connect.errors.connector.name"] == b"audit-sink-US"
    assert headers["__connect.errors.exception.class.name"] == b"audit_sink.PoisonRecord.avro"
    assert headers["__connect.errors.exception.message"]
    assert DeadLetter.objects.get().offset == 2
    assert Batch.objects.get(sink="US").dead_lettered == 1
    assert ledger_problems() == []


def test_what_no_site_owns_is_dead_lettered_undecoded(world: World) -> None:
    world.append([Record(b"anything", b"k", (("wm-site-id", b"\xff\xfe"),))])
    world.publish(world.event("9999"))
    world.ingest()
    assert world.rows() == []
    assert len(world.letters()) == 2
    assert sum(Batch.objects.filter(sink=UNROUTABLE).values_list("dead_lettered", flat=True)) == 2


def test_poison_stays_poison_when_its_range_is_done_again(world: World) -> None:
    (record,) = world.publish(world.event())
    unknown = record.value[:1] + (77).to_bytes(4, "big") + record.value[5:]
    world.append([Record(unknown, record.key, record.headers, record.timestamp)])
    with armed("after_upload"):
        world.ingest()
    # The schema becomes known in between: the file that is there must not become another one.
    from audit_publisher.avro.registry import get_registry

    text = get_registry().schema(1)
    folder = world.folder / "publisher" / "schemas"
    import json

    (folder / "77.json").write_text(json.dumps({"subject": "x", "schema": text}))
    world.clock.advance(5)
    outcomes = world.ingest()
    assert [one.error for one in outcomes.values() if one.error] == []
    assert len(world.rows()) == 1
    assert Batch.objects.get(sink="US").dead_lettered == 1
    assert ledger_problems() == []


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", ["after_read", "after_claim", "after_dead_letter", "after_upload", "after_ledger"]
)
def test_a_failure_at_any_step_is_made_good(world: World, step: str) -> None:
    world.publish(*(world.event() for _ in range(20)))
    with armed(step):
        outcomes = world.ingest()
    assert any(one.error for one in outcomes.values())
    outcomes = world.ingest()
    assert not any(one.error for one in outcomes.values())
    assert len(world.ids()) == 20
    assert ledger_problems() == []


def test_a_site_without_a_bucket_stands_still_loudly_and_alone(world: World, us: Site) -> None:
    us.bucket = f"file://{world.folder}/not/there"
    us.save()
    world.publish(world.event("US"), world.event("CA"))
    world.ingest()
    us.refresh_from_db()
    assert "correct the site's bucket URL" in us.last_error
    assert us.last_error_at is not None
    assert len(world.ids("CA")) == 1
    assert world.lane("US").next_offset == 0
    assert not Batch.objects.filter(sink="US", state="done").exists()
    # It recovers by itself when the bucket is there.
    (world.folder / "not").mkdir()
    world.clock.advance(60)
    world.ingest()
    us.refresh_from_db()
    assert us.last_error == ""
    assert len(world.ids("US")) == 1
    assert ledger_problems() == []


def test_retries_wait_and_then_the_lane_stalls(world: World, us: Site) -> None:
    from audit_sink.metrics import STALLED

    us.bucket = f"file://{world.folder}/not/there"
    us.save()
    world.publish(world.event("US"))
    world.clock.advance(5)
    ingest_all(clock=world.clock)
    for tries in range(1, 7):
        lane = world.lane("US")
        assert lane.failures == tries
        stalled = tries > 5
        assert STALLED.labels(*lane.key)._value.get() == stalled
        assert lane.due_at == world.clock.now + (60 if stalled else 5)
        world.clock.advance(60)
        ingest(lane, clock=world.clock)


def test_a_paused_site_reads_nothing_and_loses_nothing(world: World, us: Site) -> None:
    us.paused = True
    us.save()
    world.publish(world.event("US"), world.event("CA"))
    world.ingest()
    assert world.ids("US") == []
    assert world.letters() == []
    us.paused = False
    us.save()
    world.ingest()
    assert len(world.ids("US")) == 1


def test_a_held_claim_is_left_alone_until_its_lease_ends(world: World) -> None:
    world.publish(world.event())
    with armed("after_claim", "raise"):
        world.ingest()
    Batch.objects.filter(sink="US").update(lease_expires=world.clock.now + 60, fence=5)
    lane = world.lane("US")
    assert ingest(lane, clock=world.clock, flush=True).state == "held"
    world.clock.advance(60)
    assert ingest(lane, clock=world.clock, flush=True).rows == 1
    assert Batch.objects.get(sink="US").fence == 6


def test_a_claim_that_could_not_be_read_again_is_free_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(world.event())
    with armed("after_claim"):
        world.ingest()
    lane = world.lane("US")

    def blip(*args: object) -> None:
        raise RegionUnavailable("a blip")

    with monkeypatch.context() as patch:
        patch.setattr(get_region("primary"), "read", blip)
        assert ingest(lane, clock=world.clock, flush=True).error == "a blip"
    assert ingest(lane, clock=world.clock, flush=True).rows == 1


def test_an_owner_whose_claim_was_taken_over_writes_nothing_to_the_ledger(world: World) -> None:
    world.publish(world.event())

    def taken_over() -> None:
        Batch.objects.filter(sink="US").update(fence=9)

    with armed("after_upload", taken_over):
        outcomes = world.ingest()
    assert "taken this claim over" in outcomes[f"US primary {world.topic}/0"].error
    assert not LakeFile.objects.exists()
    world.clock.advance(61)
    world.ingest()
    assert len(world.ids()) == 1
    assert ledger_problems() == []


def test_records_that_retention_took_are_reported_not_skipped(world: World, us: Site) -> None:
    world.publish(*(world.event() for _ in range(10)))
    world.ingest()
    world.publish(*(world.event() for _ in range(10)))
    log = get_region("primary")
    log._queue.trim(f"{world.topic}/0", 15)  # type: ignore[attr-defined]
    world.ingest()
    us.refresh_from_db()
    assert "offsets 10 to 15 are gone" in us.last_error
    assert world.lane("US").next_offset == 10
    # An admin accepts it: the ledger keeps the hole, and the rest is stored.
    assert [accept_lost(lane, clock=world.clock) for lane in Lane.objects.filter(sink="US")] == [
        *(5, 0),
        *(0, 0),
    ]
    world.ingest()
    us.refresh_from_db()
    assert us.last_error == ""
    assert len(world.ids()) == 15
    assert sum(Batch.objects.filter(sink="US").values_list("lost", flat=True)) == 5
    assert ledger_problems() == []


@pytest.mark.parametrize("gone", [4, 10, 14])
def test_a_claimed_range_that_retention_took_is_given_up(
    world: World, us: Site, caplog: pytest.LogCaptureFixture, gone: int
) -> None:
    """Killed before its end, and retention passed in part, exactly, or further on."""
    records = world.publish(*(world.event() for _ in range(10)))
    bad = Record(records[0].value[:40], records[0].key, records[0].headers, records[0].timestamp)
    world.append([bad])
    with armed("after_dead_letter"):
        ingest_one(world)
    assert DeadLetter.objects.count() == 1
    # Others came meanwhile; some of them are copies that the claim's ids would shut out.
    world.append([*records, *records[:3]])
    get_region("primary")._queue.trim(f"{world.topic}/0", gone)  # type: ignore[attr-defined]
    assert f"offsets 0 to {gone} are gone" in ingest_one(world)
    assert "Nothing is lost" not in caplog.messages[-1]
    assert accept_lost(world.lane("US"), clock=world.clock) == gone
    assert ingest_one(world) == ""
    us.refresh_from_db()
    assert us.last_error == ""
    lost = Batch.objects.get(sink="US", start_offset=0)
    assert (lost.state, lost.end_offset, lost.lost) == ("done", gone, gone)
    assert len(world.ids("US")) == 10
    assert [letter.offset for letter in DeadLetter.objects.all()] == ([10] if gone <= 10 else [])
    assert ledger_problems() == []
    assert accept_lost(world.lane("US"), clock=world.clock) == 0


def test_a_claim_that_a_worker_may_be_at_is_not_given_up(world: World) -> None:
    world.publish(*(world.event() for _ in range(10)))
    with armed("after_claim"):
        ingest_one(world)
    Batch.objects.update(lease_expires=world.clock.now + 60)
    # Nothing is gone: there is nothing to accept.
    assert accept_lost(world.lane("US"), clock=world.clock) == 0
    get_region("primary")._queue.trim(f"{world.topic}/0", 5)  # type: ignore[attr-defined]
    with pytest.raises(RangeUnavailable, match=r"Try again when .* at 08:01:00 UTC"):
        accept_lost(world.lane("US"), clock=world.clock)
    assert Batch.objects.get().state == "claimed"
    world.clock.advance(60)
    assert accept_lost(world.lane("US"), clock=world.clock) == 5


def ingest_one(world: World) -> str:
    """Bring the US lane of the first partition forward; return its failure."""
    list(lanes())
    return ingest(world.lane("US"), clock=world.clock, flush=True).error


def test_a_log_that_was_made_anew_is_reported(world: World) -> None:
    world.publish(world.event())
    world.ingest()
    Batch.objects.filter(sink="US").update(end_offset=50)
    world.publish(world.event())
    with pytest.raises(RangeUnavailable, match="made anew"):
        accept_lost(world.lane("US"))


def test_batches_without_a_record_are_merged_but_for_the_newest(
    world: World, sink_options: Options
) -> None:
    sink_options(MAX_SCAN_RECORDS=5)
    world.publish(*(world.event("US") for _ in range(20)), world.event("CA"))
    world.publish(*(world.event("US") for _ in range(19)))
    world.ingest()
    world.clock.advance(86_401)
    assert merge_idle(clock=world.clock) > 0
    mx = Batch.objects.filter(sink="MX").order_by("start_offset")
    assert list(mx.values_list("start_offset", "end_offset", "read")) == [(0, 35, 35), (35, 40, 5)]
    ca = Batch.objects.filter(sink="CA").order_by("start_offset")
    assert list(ca.values_list("start_offset", "end_offset")) == [
        *((0, 20), (20, 25), (25, 35), (35, 40)),
    ]
    assert merge_idle(clock=world.clock) == 0
    assert ledger_problems() == []
    world.publish(world.event("MX"))
    world.ingest()
    assert len(world.ids("MX")) == 1
    assert ledger_problems() == []


def test_an_object_with_the_name_of_ours_and_other_bytes_stops_the_lane(
    world: World, us: Site
) -> None:
    world.publish(world.event())
    with armed("after_upload"):
        world.ingest()
    (file,) = (world.folder / "sink/buckets/us").rglob("*.parquet")
    file.write_bytes(b"somebody else's")
    world.clock.advance(5)
    world.ingest()
    us.refresh_from_db()
    assert "holds other bytes" in us.last_error
    file.unlink()
    world.clock.advance(60)
    world.ingest()
    assert len(world.ids()) == 1


def test_a_file_of_an_earlier_try_is_kept_though_encoded_otherwise(
    world: World, sink_options: Options
) -> None:
    world.publish(*(world.event() for _ in range(20)))
    with armed("after_upload"):
        world.ingest()
    # As a new version of a library might do.
    sink_options(ZSTD_LEVEL=19)
    world.clock.advance(5)
    outcomes = world.ingest()
    assert [one.error for one in outcomes.values() if one.error] == []
    assert len(world.ids()) == 20
    assert ledger_problems() == []


# -- start and progress -------------------------------------------------------------------------


def test_a_site_may_start_with_what_comes_from_now_on(world: World) -> None:
    Site.objects.create(code="BR", site_id="5555", start_from="latest")
    world.publish(world.event("5555"))
    world.ingest()
    new = world.event("5555")
    world.publish(new)
    world.ingest()
    assert world.ids("BR") == [new["request_id"]]


def test_a_partition_that_appears_later_is_read_from_its_beginning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Site.objects.create(code="BR", site_id="5555", start_from="latest")
    with monkeypatch.context() as patch:
        patch.setattr(get_region("primary"), "partitions", lambda topic: 1)
        world.ingest()
    events = [world.event("5555", endpoint_name=f"e{n}/x") for n in range(20)]
    world.publish(*events)
    assert get_region("primary").watermarks(world.topic, 1)[1] > 0
    world.ingest()
    assert world.ids("BR") == sorted(event["request_id"] for event in events)


def test_progress_is_published_for_lag_tools(world: World) -> None:
    world.publish(*(world.event() for _ in range(7)))
    world.ingest()
    log = get_region("primary")
    assert log.committed("audit-sink-us", world.topic, 0) == 7
    assert log.committed("audit-sink-ca", world.topic, 0) == 7


def test_a_region_that_does_not_answer_leaves_the_other_one_going(
    world: World, settings, tmp_path: Path
) -> None:
    settings.AUDIT_PUBLISHER = {
        **settings.AUDIT_PUBLISHER,
        "SECONDARY_URL": f"local://{tmp_path}/folder/of/nobody",
    }
    (tmp_path / "folder").write_text("a file")
    world.publish(world.event())
    world.ingest()
    assert len(world.ids()) == 1


# -- JSON in the log ----------------------------------------------------------------------------


def test_json_that_somebody_wrote_to_the_topic_is_a_row(world: World) -> None:
    event = world.event(method="get")
    by_hand = json.dumps(event).encode()
    (good,) = world.publish(world.event())
    world.append(
        [
            Record(b" \n" + by_hand, b"k", good.headers),
            Record(b'{"request_id": 1}', b"k", good.headers),
            Record(b"{" + good.value, b"k", good.headers),
        ]
    )
    world.ingest()
    rows = {row["request_id"]: row for row in world.rows()}
    assert len(rows) == 2
    assert rows[event["request_id"]]["method"] == "GET"
    reasons = DeadLetter.objects.values_list("reason", flat=True)
    assert sorted(reasons) == ["json", "json"]
    assert ledger_problems() == []
