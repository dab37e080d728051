"""The page of regions: who may do what, what is asked before, and what is kept of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from audit_logging.background import Loop
from audit_publisher.durable import control
from audit_publisher.durable.control import Wishes
from audit_publisher.health import readiness
from audit_publisher.models import RegionWish, TrailLine
from audit_publisher.operating.overview import look
from audit_publisher.operating.region_actions import Overtaken, carry_out, plan
from audit_publisher.publish import get_publisher
from tests.unit.audit_publisher.operating import DOWN, REGIONS, heard, person, send

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def two_regions(configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Loop, "ensure_running", lambda self: None)
    configure(SECONDARY_URL=f"local://{tmp_path}/second.sqlite3")
    control._wishes = control._snapshot()
    yield
    control._wishes = control._snapshot()


@pytest.fixture
def operator() -> Client:
    return person("olga", "control_regions")


def meant(page: str) -> str:
    """What the page's tick stands for."""
    found = re.search(r'name="meant" value="(\w+)"', page)
    assert found, "nothing is to be ticked"
    return found[1]


def do(action: str, region: str) -> None:
    carry_out(plan(action, region, look()))


def wishes() -> Wishes:
    control.refresh()
    return control.wishes()


def test_who_may_see_and_who_may_act() -> None:
    nobody = person("nobody")
    assert nobody.get(REGIONS).status_code == 403
    assert nobody.get(f"{REGIONS}lines/").status_code == 403
    assert nobody.get(f"{REGIONS}drain/primary/").status_code == 403
    reader = person("reader", "view_regionwish")
    page = reader.get(REGIONS)
    assert page.status_code == 200
    assert "Drain …" not in page.content.decode()
    assert reader.get(f"{REGIONS}drain/primary/").status_code == 403
    assert send(reader, f"{REGIONS}drain/primary/", _change_reason="x").status_code == 403
    assert Client().get(REGIONS).status_code == 302
    assert wishes() == Wishes()


def test_a_refusal_is_in_the_trail() -> None:
    client = person("nobody")
    send(client, f"{REGIONS}drain/primary/", _change_reason="x")
    refused = TrailLine.objects.filter(action="refused")
    assert {(line.actor, line.text) for line in refused} >= {
        ("nobody", f"GET {REGIONS}drain/primary/")
    }


def test_nothing_is_done_without_a_token_or_by_get(operator: Client) -> None:
    url = f"{REGIONS}drain/primary/"
    assert operator.post(url, {"_change_reason": "x"}).status_code == 403
    assert operator.get(url, {"_change_reason": "x", "meant": "yes"}).status_code == 200
    assert operator.put(url).status_code in (403, 405)
    assert operator.delete(REGIONS).status_code in (403, 405)
    assert wishes() == Wishes()


def test_draining_asks_first_says_what_happens_and_wants_a_reason(operator: Client) -> None:
    heard()
    url = f"{REGIONS}drain/primary/"
    page = operator.get(url).content.decode()
    assert "Drain primary?" in page
    assert "The order will be: secondary." in page
    assert "1 publisher process will know" in page
    assert 'name="meant"' not in page
    response = send(operator, url)
    assert "Say why" in response.content.decode()
    assert wishes() == Wishes()
    assert send(operator, url, _change_reason="new disks").status_code == 302
    assert wishes() == Wishes(frozenset({"primary"}))
    assert control.order(("primary", "secondary")) == ("secondary",)
    wish = RegionWish.objects.get(region="primary")
    assert (wish.wished_by, wish.note) == ("olga", "new disks")
    line = TrailLine.objects.get(kind="audit_publisher.regionwish", action="created")
    assert (line.actor, line.reason, line.address) == ("olga", "new disks", "127.0.0.1")
    assert line.fields == {
        "region": [None, "primary"],
        "drained": [None, True],
        "first": [None, False],
    }
    shown = operator.get(REGIONS).content.decode()
    assert "new disks" in shown
    assert "0 of 1 running processes" in shown
    assert "not yet as wanted" in shown
    send(operator, f"{REGIONS}take-back/primary/", _change_reason="done")
    assert wishes() == Wishes()
    back = TrailLine.objects.filter(kind="audit_publisher.regionwish").first()
    assert back is not None
    assert back.fields["drained"] == [True, False]


def test_draining_the_last_region_must_be_meant(operator: Client) -> None:
    heard()
    send(operator, f"{REGIONS}drain/primary/", _change_reason="a")
    url = f"{REGIONS}drain/secondary/"
    page = operator.get(url).content.decode()
    assert "Every region is drained then" in page
    assert "1,000 bytes are free on 1 host heard of" in page
    assert "Tick that" in send(operator, url, _change_reason="b").content.decode()
    assert wishes().drained == {"primary"}
    # Another danger than this page's was ticked.
    assert "Tick that" in send(operator, url, _change_reason="b", meant="yes").content.decode()
    send(operator, url, _change_reason="b", meant=meant(page))
    assert wishes().drained == {"primary", "secondary"}
    assert control.order(("primary", "secondary")) == ()


def test_draining_the_only_region_that_is_seen_up_must_be_meant(operator: Client) -> None:
    heard(regions={"secondary": DOWN})
    page = operator.get(f"{REGIONS}drain/primary/").content.decode()
    assert "No process sees secondary take records now" in page


def test_failing_over_and_back(operator: Client) -> None:
    heard()
    send(operator, f"{REGIONS}fail-over/secondary/", _change_reason="slow disks")
    assert wishes() == Wishes(first="secondary")
    assert control.order(("primary", "secondary")) == ("secondary", "primary")
    page = operator.get(REGIONS).content.decode()
    assert "Failed over:" in page
    # Over to the other one: one is first at most.
    send(operator, f"{REGIONS}fail-over/primary/", _change_reason="other way")
    assert wishes() == Wishes(first="primary")
    assert RegionWish.objects.filter(first=True).count() == 1
    send(operator, f"{REGIONS}fail-back/primary/", _change_reason="all well")
    assert wishes() == Wishes()


def test_failing_over_to_one_that_is_down_must_be_meant(operator: Client) -> None:
    heard(regions={"secondary": DOWN})
    url = f"{REGIONS}fail-over/secondary/"
    page = send(operator, url, _change_reason="x").content.decode()
    assert "No process sees secondary take records now; primary is used until" in page
    assert wishes() == Wishes()


def test_what_makes_no_sense_is_not_done(operator: Client) -> None:
    send(operator, f"{REGIONS}drain/secondary/", _change_reason="x")
    for action, region in (
        ("drain", "secondary"),
        ("fail-over", "secondary"),
        ("take-back", "primary"),
        ("fail-back", "primary"),
    ):
        response = send(operator, f"{REGIONS}{action}/{region}/", _change_reason="x")
        assert response.status_code == 302, action
    assert wishes() == Wishes(frozenset({"secondary"}))
    assert operator.get(f"{REGIONS}explode/primary/").status_code == 404
    assert operator.get(f"{REGIONS}drain/elsewhere/").status_code == 404


def test_the_page_tells_the_live_from_the_silent(operator: Client) -> None:
    heard(pid=1, regions={"secondary": DOWN})
    heard(pid=2, regions={"secondary": {**DOWN, "up": True, "missing_topics": ["events"]}})
    heard(pid=3, age=100)
    heard(pid=4, upkeep_late=True)
    overview = look()
    assert len(overview.live) == 3
    primary, secondary = overview.regions
    assert (primary.seen, primary.good) == (3, 3)
    assert (secondary.seen, secondary.good) == (3, 1)
    assert secondary.problems == ["no broker"]
    page = operator.get(f"{REGIONS}lines/").content.decode()
    assert "(silent)" in page
    assert "upkeep hangs" in page
    assert "missing: events" in page
    assert "up in 1 of 3 processes" in page


def test_a_wish_for_a_region_that_is_gone_can_be_taken_back(operator: Client) -> None:
    RegionWish.objects.create(region="tertiary", drained=True)
    assert "not in this process" in operator.get(REGIONS).content.decode()
    send(operator, f"{REGIONS}take-back/tertiary/", _change_reason="it was renamed")
    assert wishes() == Wishes()


def test_errors_from_regions_are_text_never_markup(operator: Client) -> None:
    heard(regions={"primary": {**DOWN, "error": "<script>alert(1)</script>"}})
    page = operator.get(REGIONS).content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_nobody_adds_edits_or_deletes_a_region_past_the_page() -> None:
    client = person("root", is_superuser=True)
    wish = RegionWish.objects.create(region="primary")
    for page in ("add/", f"{wish.pk}/change/", f"{wish.pk}/delete/", f"{wish.pk}/"):
        assert client.get(REGIONS + page).status_code == 404, page


def test_a_plan_without_a_process_heard_says_so() -> None:
    assert any("No publisher process is heard" in line for line in plan(
        "drain", "primary", look()
    ).effects)  # fmt: skip


def test_in_active_active_mode_regions_are_drained_not_failed_over(
    operator: Client, configure: Any, tmp_path: Path
) -> None:
    send(operator, f"{REGIONS}fail-over/secondary/", _change_reason="x")
    configure(SECONDARY_URL=f"local://{tmp_path}/second.sqlite3", REGION_MODE="active-active")
    heard()
    assert look().taken_up == 1
    page = operator.get(REGIONS).content.decode()
    assert "Fail over to it" not in page
    assert page.count("takes its share of the traffic") == 2
    answer = send(operator, f"{REGIONS}fail-over/primary/", _change_reason="x")
    assert answer.status_code == 302
    assert RegionWish.objects.get(first=True).region == "secondary"
    # What was wished before the mode was changed can be taken back.
    assert "Fail back" in page
    send(operator, f"{REGIONS}fail-back/secondary/", _change_reason="x")
    assert not RegionWish.objects.filter(first=True).exists()


def test_readiness_tells_what_is_drained(tmp_path: Path) -> None:
    publisher = get_publisher()
    publisher.probe()
    assert readiness()["status"] == "ok"
    do("drain", "primary")
    do("drain", "secondary")
    control.refresh()
    answer = readiness()
    assert answer["status"] == "degraded"
    assert "Region primary is drained in the admin (Publisher, Regions)" in answer["problems"][0]
    # With no region to use and no spool, there is no durable place.
    publisher.spool.accepts = lambda: "the spool is full"  # type: ignore[method-assign]
    assert readiness()["status"] == "failing"


# -- by command ---------------------------------------------------------------------------


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("audit_region", *arguments, stdout=out)
    return out.getvalue()


def test_regions_by_command() -> None:
    assert "No publisher process has been heard" in run("list")
    heard(pid=1)
    heard(pid=2, regions={"secondary": DOWN})
    assert "secondary    number 2 in the order; takes records in 1 of 2" in run("list")
    assert "The order will be: secondary, primary." in run(
        "fail-over", "secondary", "--reason=slow disks"
    )
    assert wishes() == Wishes(first="secondary")
    run("fail-back", "secondary", "--reason=done")
    run("drain", "primary", "--reason=new disks")
    with pytest.raises(CommandError, match=r"Every region is drained then.* With --yes"):
        run("drain", "secondary", "--reason=x")
    run("drain", "secondary", "--reason=x", "--yes")
    assert wishes().drained == {"primary", "secondary"}
    found = json.loads(run("list", "--json"))
    assert [region["place"] for region in found["regions"]] == [0, 0]
    assert [process["taken_up"] for process in found["processes"]] == [False, False]
    with pytest.raises(CommandError, match="drained already"):
        run("drain", "primary", "--reason=x")
    with pytest.raises(CommandError, match="no region 'elsewhere': primary, secondary"):
        run("drain", "elsewhere", "--reason=x")
    line = TrailLine.objects.filter(reason="new disks").get()
    assert line.fields["drained"] == [None, True]
    assert " by " in line.actor


def test_the_list_says_who_wanted_it_and_which_process_does_not_know_yet() -> None:
    drained = {"drained": ["primary"], "order": ["secondary"]}
    heard("web-1", 1, **drained)
    heard("web-1", 2, spool={"used_bytes": 950, "records": 12, "drain": "waiting"})
    run("drain", "primary", "--reason=new disks")
    first, second, many, knows, late, spool = run("list").splitlines()
    assert first.startswith("primary      drained (asked by ")
    assert re.search(r", \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: new disks\)", first)
    assert first.endswith("; is seen up by 2 of 2 processes")
    assert second == "secondary    number 1 in the order; takes records in 2 of 2 processes"
    assert many == "1 of 2 running processes have taken that up."
    assert "NOT YET" not in knows
    assert late.endswith("order: primary, secondary; NOT YET AS WANTED")
    assert "web-1 /var/spool/publisher: 95.0 % of 1 kB, 12 waiting" in spool
    found = json.loads(run("list", "--json"))
    region = found["regions"][0]
    assert (region["seen_up"], region["takes_records"], region["reason"]) == (2, 0, "new disks")
    assert [each["state"] for each in found["spools"]] == ["waits for a region"]


#: A command without a database, whose reader left before it wrote anything.
PIPED = """
import sys, django
django.setup()
from django.core.management import call_command
from unittest import mock
from audit_publisher.operating.overview import Overview
from audit_publisher.durable.control import NOTHING
empty = Overview(NOTHING, (), (), ())
name = sys.argv[1]
with mock.patch(f"audit_publisher.management.commands.{name}.look", lambda: empty):
    call_command(*sys.argv[1:])
"""


@pytest.mark.parametrize("command", [("audit_region", "list"), ("audit_publisher_spool", "list")])
def test_a_reader_that_has_seen_enough_is_no_error(
    command: tuple[str, str], tmp_path: Path
) -> None:
    # A process of its own: what is flushed at its end counts, too.
    run = subprocess.Popen(
        [sys.executable, "-c", PIPED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ
        | {"DJANGO_SETTINGS_MODULE": "config.settings", "AUDIT_DATA_DIR": str(tmp_path)},
    )
    assert run.stdout is not None
    run.stdout.close()
    _, errors = run.communicate()
    assert (run.returncode, errors.decode()) == (0, "")


def test_two_who_act_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    save = RegionWish.save
    once = [True]

    def quicker(self: RegionWish, *args: Any, **kwargs: Any) -> None:
        if once.pop() if once else False:
            # Another transaction made the row after this one looked.
            save(RegionWish(region="secondary", first=True))
        save(self, *args, **kwargs)

    monkeypatch.setattr(RegionWish, "save", quicker)
    do("fail-over", "primary")
    assert RegionWish.objects.get(first=True).region == "primary"


def test_who_comes_second_is_asked_by_what_holds_then() -> None:
    heard()
    first, second = (plan("drain", region, look()) for region in ("primary", "secondary"))
    assert (first.dangers, second.dangers) == ([], [])
    carry_out(first)
    with pytest.raises(Overtaken, match="Every region is drained then") as caught:
        carry_out(second)
    assert wishes().drained == {"primary"}
    # Meant now, it is done; so it is by who means whatever there is.
    carry_out(caught.value.plan)
    assert wishes().drained == {"primary", "secondary"}
    do("take-back", "secondary")
    carry_out(second, whatever=True)
    assert wishes().drained == {"primary", "secondary"}
    with pytest.raises(Overtaken, match="drained already"):
        carry_out(first)


def test_who_comes_second_follows_the_plan_that_holds_then() -> None:
    heard()
    late = plan("drain", "secondary", look())
    assert "The order will be: primary." in late.effects
    do("fail-over", "primary")
    do("fail-over", "secondary")
    done = carry_out(late)
    assert done is not late
    assert wishes() == Wishes(frozenset({"secondary"}), "secondary")


def test_who_acts_waits_for_the_others_before_looking() -> None:
    with CaptureQueriesContext(connection) as queries:
        do("drain", "primary")
    said = [query["sql"] for query in queries]
    begun = next(number for number, sql in enumerate(said) if "SAVEPOINT" in sql or "BEGIN" in sql)
    assert [sql.split()[0] for sql in said[begun + 1 : begun + 3]] == ["INSERT", "UPDATE"]
    # The row that is waited for is nobody's wish, and no line of the trail.
    assert [line.text for line in TrailLine.objects.all()] == ["primary"]
    assert "primary" in run("list")
    assert [region.name for region in look().regions] == ["primary", "secondary"]


@pytest.mark.parametrize("other", ["primary", "secondary"])
def test_a_page_that_was_overtaken_asks_again_or_says_so(
    operator: Client, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    heard()

    def late(made: Any, **kwargs: Any) -> Any:
        if made.region == "secondary" and other not in wishes().drained:
            do("drain", other)
        return carry_out(made, **kwargs)

    monkeypatch.setattr("audit_publisher.admin.regions.carry_out", late)
    answer = send(operator, f"{REGIONS}drain/secondary/", _change_reason="x")
    assert wishes().drained == {other}
    if other == "secondary":
        assert answer.status_code == 302
        assert "Somebody else was quicker." in operator.get(REGIONS).content.decode()
        return
    page = answer.content.decode()
    assert "Somebody else was quicker" in page
    assert "Every region is drained then" in page
    send(operator, f"{REGIONS}drain/secondary/", _change_reason="x", meant=meant(page))
    assert wishes().drained == {"primary", "secondary"}


def test_room_is_counted_where_events_are_taken() -> None:
    do("drain", "primary")
    heard("web-1", 1, spool={"used_bytes": 400})
    heard("web-2", 2, spool={"used_bytes": 900})
    heard("web-3", 3, age=100)
    (danger,) = plan("drain", "secondary", look()).dangers
    assert "700 bytes are free on 2 hosts heard of, 100 where there is least" in danger
