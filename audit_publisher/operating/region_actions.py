"""Drain a region, take it back, fail over, fail back: what each would do, and doing it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from django.db import IntegrityError, router, transaction
from django.utils import timezone

from audit_logging import changes

from ..conf import conf
from ..durable.control import Wishes, arranged
from ..models import RegionWish
from .overview import Overview, look

DRAIN, TAKE_BACK, FAIL_OVER, FAIL_BACK = "drain", "take-back", "fail-over", "fail-back"
ACTIONS = (DRAIN, TAKE_BACK, FAIL_OVER, FAIL_BACK)

#: The row that all who act wait for, one after the other; no region has this name.
_TURN = ""

#: What is wished of regions, as rows say it: (region, drained, first) of those with a wish.
Seen = frozenset[tuple[str, bool, bool]]


@dataclass(slots=True)
class Plan:
    """What an action would do.

    :ivar impossible: why it cannot be done; empty when it can.
    :ivar effects: sentences, what will happen.
    :ivar dangers: sentences; where there are any, whoever asks must say that it is meant.
    :ivar saw: the wishes that it was made by.
    """

    action: str
    region: str
    title: str
    verb: str
    impossible: str = ""
    effects: list[str] = field(default_factory=list)
    dangers: list[str] = field(default_factory=list)
    saw: Seen = frozenset()

    @property
    def mark(self) -> str:
        """Stands for the dangers: who means these has not meant others. Figures may differ."""
        said = "".join(
            each for each in " ".join(self.dangers) if not each.isdigit() and each != ","
        )
        return hashlib.sha256(said.encode()).hexdigest()[:16] if said else ""


class Overtaken(Exception):
    """Somebody else changed what is wished of regions first; nothing was done.

    :ivar plan: what the action would do now: it is impossible, or has dangers nobody has meant.
    """

    def __init__(self, made: Plan) -> None:
        super().__init__(made.impossible or " ".join(made.dangers))
        self.plan = made


def plan(action: str, region: str, overview: Overview) -> Plan:
    """Say what `action` would do to `region`, by what is known now.

    :raises KeyError: there is no such action, or no such region.
    """
    view = overview.region(region)
    if view is None:
        raise KeyError(region)
    made, wanted = _PLANS[action](region, overview)
    made.saw = _wishes((each.name, each.drained, each.first) for each in overview.regions)
    if made.impossible:
        return made
    before = arranged(overview.names, overview.wishes)
    after = arranged(overview.names, wanted)
    live = len(overview.live)
    seconds = f"within about {conf.REFRESH_SECONDS + 1:.0f} seconds"
    made.effects.append(
        f"{live} publisher process{'' if live == 1 else 'es'} will know of it {seconds}."
        if live
        else "No publisher process is heard now; those that start or come back take it up."
    )
    if after:
        made.effects.append(f"The order will be: {', '.join(after)}.")
    made.dangers += _dangers(before, after, overview)
    return made


def _drain(region: str, overview: Overview) -> tuple[Plan, Wishes]:
    made = Plan(DRAIN, region, f"Drain {region}?", f"Drain {region}")
    if region in overview.wishes.drained:
        made.impossible = f"{region} is drained already."
    made.effects = [
        f"Nothing more is sent to {region}: no new event, and nothing that waits in the spool, not "
        "even when no other region takes it. What it holds stays, and is read as ever.",
        "It is probed all the same, so that this page shows when it is back.",
    ]
    drained = overview.wishes.drained | {region}
    return made, Wishes(drained, overview.wishes.first)


def _take_back(region: str, overview: Overview) -> tuple[Plan, Wishes]:
    made = Plan(TAKE_BACK, region, f"Take {region} back?", f"Take {region} back")
    if region not in overview.wishes.drained:
        made.impossible = f"{region} is not drained."
    made.effects = [f"{region} gets traffic again wherever it is seen to answer."]
    return made, Wishes(overview.wishes.drained - {region}, overview.wishes.first)


def _fail_over(region: str, overview: Overview) -> tuple[Plan, Wishes]:
    made = Plan(FAIL_OVER, region, f"Fail over to {region} now?", f"Fail over to {region}")
    if conf.REGION_MODE == "active-active":
        made.impossible = (
            "In active-active mode each region takes its share of the keys, and the others' when "
            "they take nothing. To take one out, drain it."
        )
    elif overview.wishes.first == region:
        made.impossible = f"{region} is used first already."
    elif region in overview.wishes.drained:
        made.impossible = f"{region} is drained. Take it back first."
    made.effects = [
        f"New events, and what waits in the spool, go to {region} first, until somebody fails back "
        "here: no probe ends it.",
        "The other regions that are not drained are used when it takes nothing.",
    ]
    return made, Wishes(overview.wishes.drained, region)


def _fail_back(region: str, overview: Overview) -> tuple[Plan, Wishes]:
    made = Plan(FAIL_BACK, region, "Fail back to the configured order?", "Fail back")
    view = overview.region(region)
    if view is None or not view.first:
        made.impossible = f"{region} is not used first by anybody's wish."
    made.effects = ["The configured order of regions holds again."]
    return made, Wishes(overview.wishes.drained, None)


_PLANS: dict[str, Callable[[str, Overview], tuple[Plan, Wishes]]] = {
    DRAIN: _drain,
    TAKE_BACK: _take_back,
    FAIL_OVER: _fail_over,
    FAIL_BACK: _fail_back,
}


def _dangers(before: tuple[str, ...], after: tuple[str, ...], overview: Overview) -> list[str]:
    if not after:
        # What a host that is silent has on its disk helps none that takes events.
        rooms = [spool.room for spool in overview.spools if not spool.stale]
        hosts = len({spool.host for spool in overview.spools if not spool.stale})
        where = (
            f"{sum(rooms):,} bytes are free on {hosts} host{'' if hosts == 1 else 's'} heard of"
            + (f", {min(rooms):,} where there is least" if len(rooms) > 1 else "")
            if rooms
            else f"each host has AUDIT_PUBLISHER_SPOOL_MAX_BYTES ({conf.SPOOL_MAX_BYTES:,} bytes)"
        )
        return [
            f"Every region is drained then. All events wait in the publishers' spools: {where}. "
            "When a spool is full, its host refuses events with 503. Nothing reaches the lake "
            "until a region is taken back."
        ]
    if not overview.live:
        return []
    taking = [name for name in after if (view := overview.region(name)) and view.takes]
    if not taking:
        return [
            f"No process sees {' or '.join(after)} take records now. Events wait in the spools "
            "until one does."
        ]
    if after[:1] != before[:1] and after[0] not in taking:
        return [f"No process sees {after[0]} take records now; {taking[0]} is used until one does."]
    return []


def carry_out(made: Plan, whatever: bool = False) -> Plan:
    """Do it, for whoever acts now and for their reason; return the plan that was followed.

    One after the other: whoever finds other wishes than the plan was made by plans again.

    :param made: its dangers are meant.
    :param whatever: so is every other danger.
    :raises Overtaken: others were quicker, and now it is impossible or has other dangers.
    """
    try:
        return _carry_out(made, whatever)
    except IntegrityError:
        # The row of a region was made past this module at the same moment; now it is there.
        return _carry_out(made, whatever)


def _carry_out(made: Plan, whatever: bool) -> Plan:
    actor = changes.actor()
    with transaction.atomic(using=router.db_for_write(RegionWish)):
        _take_turn()
        rows = {
            wish.region: wish for wish in RegionWish.objects.select_for_update().order_by("region")
        }
        if _wishes((row.region, row.drained, row.first) for row in rows.values()) != made.saw:
            now = plan(made.action, made.region, look())
            if now.impossible or (now.dangers and now.mark != made.mark and not whatever):
                raise Overtaken(now)
            made = now
        region, action = made.region, made.action
        wish = rows.get(region) or RegionWish(region=region)
        if action in (DRAIN, TAKE_BACK):
            wish.drained = action == DRAIN
        elif action == FAIL_BACK:
            wish.first = False
        else:
            wish.first = True
            for other in rows.values():
                if other.first and other.region != region:
                    other.first = False
                    _sign(other, actor)
        _sign(wish, actor)
    return made


def _take_turn() -> None:
    """Wait until nobody else acts; held until the transaction ends.

    By writing, as SQLite locks nothing for those who read; by a row of its own, as a region that
    nobody has wished anything of has none that could be locked. It tells nobody anything, so it
    goes past the trail.
    """
    rows = RegionWish._base_manager.using(router.db_for_write(RegionWish))
    rows.bulk_create([RegionWish(region=_TURN)], ignore_conflicts=True)
    rows.filter(region=_TURN).update(note="")


def _wishes(rows: Iterable[tuple[str, bool, bool]]) -> Seen:
    return frozenset(row for row in rows if row[1] or row[2])


def _sign(wish: RegionWish, actor: changes.Actor) -> None:
    wish.wished_by, wish.wished_at, wish.note = actor.name, timezone.now(), actor.reason
    wish.save()
