"""Drain a region, take it back, fail over, fail back: what each would do, and doing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from django.db import IntegrityError, router, transaction
from django.utils import timezone

from audit_logging import changes

from ..conf import conf
from ..durable.control import Wishes, arranged
from ..models import RegionWish
from .overview import Overview

DRAIN, TAKE_BACK, FAIL_OVER, FAIL_BACK = "drain", "take-back", "fail-over", "fail-back"
ACTIONS = (DRAIN, TAKE_BACK, FAIL_OVER, FAIL_BACK)


@dataclass(slots=True)
class Plan:
    """What an action would do.

    :ivar impossible: why it cannot be done; empty when it can.
    :ivar effects: sentences, what will happen.
    :ivar dangers: sentences; where there are any, whoever asks must say that it is meant.
    """

    action: str
    region: str
    title: str
    verb: str
    impossible: str = ""
    effects: list[str] = field(default_factory=list)
    dangers: list[str] = field(default_factory=list)


def plan(action: str, region: str, overview: Overview) -> Plan:
    """Say what `action` would do to `region`, by what is known now.

    :raises KeyError: there is no such action, or no such region.
    """
    view = overview.region(region)
    if view is None:
        raise KeyError(region)
    made, wanted = _PLANS[action](region, overview)
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
        room = sum(max(0, spool.max_bytes - spool.used_bytes) for spool in overview.spools)
        hosts = len({spool.host for spool in overview.spools})
        where = (
            f"{room:,} bytes are free on {hosts} host{'' if hosts == 1 else 's'} heard of"
            if hosts
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


def carry_out(action: str, region: str) -> bool:
    """Do it, for whoever acts now and for their reason; return whether anything changed."""
    try:
        return _carry_out(action, region)
    except IntegrityError:
        # Somebody else made the first row of a region at the same moment; now it is there.
        return _carry_out(action, region)


def _carry_out(action: str, region: str) -> bool:
    actor = changes.actor()
    with transaction.atomic(using=router.db_for_write(RegionWish)):
        rows = {
            wish.region: wish for wish in RegionWish.objects.select_for_update().order_by("region")
        }
        wish = rows.get(region) or RegionWish(region=region)
        before = (wish.drained, wish.first)
        if action in (DRAIN, TAKE_BACK):
            wish.drained = action == DRAIN
        elif action == FAIL_BACK:
            wish.first = False
        elif action == FAIL_OVER:
            wish.first = True
            for other in rows.values():
                if other.first and other.region != region:
                    other.first = False
                    _sign(other, actor)
        else:
            raise KeyError(action)
        if (wish.drained, wish.first) == before:
            return False
        _sign(wish, actor)
    return True


def _sign(wish: RegionWish, actor: changes.Actor) -> None:
    wish.wished_by, wish.wished_at, wish.note = actor.name, timezone.now(), actor.reason
    wish.save()
