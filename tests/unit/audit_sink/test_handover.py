"""A site is changed or deleted only when no record that waits is lost by it."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.urls import reverse

from audit_publisher.eventlog import get_region
from audit_publisher.exceptions import RegionUnavailable
from audit_sink.models import UNROUTABLE, Lane, Site

from .conftest import World

ADVICE = "Resume US if it is paused, wait until audit_status shows lag 0 for US and unroutable"


def change(code: str, **fields: Any) -> None:
    """What the admin's form does."""
    site = Site.objects.get(code=code)
    for name, value in fields.items():
        setattr(site, name, value)
    site.full_clean()
    site.save()


@pytest.mark.parametrize("fields", [{"takes_unlabelled": False}, {"site_id": "5555"}])
def test_a_change_waits_until_the_site_has_caught_up(world: World, fields: dict) -> None:
    """Others have passed these records as the paused site's own."""
    change("US", paused=True)
    world.publish(*(world.event(None) for _ in range(7)), *(world.event("US") for _ in range(7)))
    world.ingest()
    with pytest.raises(ValidationError, match=ADVICE):
        change("US", **fields)
    change("US", paused=False)
    world.ingest()
    change("US", **fields)
    assert len(world.rows("US")) == 14


def test_a_change_before_the_first_tick_waits_as_well(world: World) -> None:
    world.publish(world.event("US"))
    with pytest.raises(ValidationError, match="would be lost"):
        change("US", site_id="5555")


def test_records_that_stay_with_the_site_are_no_obstacle(world: World) -> None:
    change("US", paused=True)
    world.publish(world.event("US"), world.event("CA"))
    world.ingest()
    change("US", takes_unlabelled=False, name="United States of America")
    change("CA", takes_unlabelled=True)
    world.publish(world.event(None))
    world.ingest()
    assert len(world.rows("CA")) == 2


def test_records_that_the_site_has_passed_are_the_unroutable_sinks_first(world: World) -> None:
    world.publish(world.event("5555"))
    world.ingest()
    # As when its worker is behind.
    Lane.objects.filter(sink=UNROUTABLE).update(next_offset=0)
    with pytest.raises(ValidationError, match=ADVICE.replace("US", "CA")):
        change("CA", site_id="5555")
    Lane.objects.filter(sink=UNROUTABLE).update(next_offset=1)
    change("CA", site_id="5555")


def test_records_that_nobody_has_passed_are_the_sites_from_now_on(world: World) -> None:
    """A first start on a log that holds records: the id is corrected before anything runs."""
    event = world.event("5555")
    world.publish(event)
    change("CA", site_id="5555")
    world.ingest()
    assert world.ids("CA") == [event["request_id"]]
    assert world.letters() == []


def test_a_region_that_does_not_answer_leaves_it_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(topic: str) -> int:
        raise RegionUnavailable("nobody there.")

    monkeypatch.setattr(get_region("secondary"), "partitions", no_answer)
    with pytest.raises(ValidationError, match="region secondary says: nobody there"):
        change("US", site_id="5555")
    change("US", name="x")


def test_a_long_backlog_is_not_searched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from audit_sink.ingest import handover

    world.publish(*(world.event("CA") for _ in range(6)))
    change("US", site_id="5555")
    monkeypatch.setattr(handover, "_MAX_SEARCH", 5)
    with pytest.raises(ValidationError, match="would be lost"):
        change("US", site_id="5556")
    # A new site has nothing to lose, however long the log is.
    Site(code="BR", site_id="7777").full_clean()


def test_a_site_that_records_wait_for_is_not_deleted(world: World, admin_client: Any) -> None:
    change("MX", paused=True)
    world.publish(*(world.event("MX") for _ in range(9)))
    world.ingest()
    mx = Site.objects.get(code="MX")
    with pytest.raises(ValidationError, match="would be lost"):
        mx.delete()
    page = admin_client.post(
        reverse("admin:audit_sink_site_delete", args=[mx.pk]), {"post": "yes"}, follow=True
    )
    assert ADVICE.replace("US", "MX") in page.content.decode()
    assert Site.objects.filter(code="MX").exists()


def test_a_site_that_nothing_waits_for_is_deleted_with_its_lanes(
    world: World, admin_client: Any
) -> None:
    change("MX", paused=True)
    world.publish(world.event("US"))
    world.ingest()
    mx = Site.objects.get(code="MX")
    assert Lane.objects.filter(sink="MX").exists()
    admin_client.post(reverse("admin:audit_sink_site_delete", args=[mx.pk]), {"post": "yes"})
    assert not Site.objects.filter(code="MX").exists()
    assert not Lane.objects.filter(sink="MX").exists()


def test_what_came_before_a_new_site_is_stored_from_the_oldest_record_kept(world: World) -> None:
    event = world.event("5555")
    world.publish(event)
    world.ingest()
    assert len(world.letters()) == 1
    site = Site(code="BR", site_id="5555")
    site.full_clean()
    site.save()
    world.ingest()
    assert world.ids("BR") == [event["request_id"]]


def test_a_new_site_that_starts_now_leaves_nothing_between(world: World) -> None:
    world.publish(world.event("5555"))
    site = Site(code="BR", site_id="5555", start_from="latest")
    with pytest.raises(ValidationError, match="would be lost"):
        site.full_clean()
    world.ingest()
    assert len(world.letters()) == 1
    site.full_clean()
