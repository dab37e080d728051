"""What publisher processes reported, as operators' pages and commands show it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from audit_logging import uptake

from ..conf import conf
from ..durable.control import Wishes, arranged, wished
from ..models import PublisherProcess, RegionWish
from .reports import STALE
from .sizes import size

#: Processes that a page lists.
MOST = 200
#: How terminals show a time.
TIME = "%Y-%m-%d %H:%M:%S %Z"
#: Per cent from which on a spool counts as full: what is left fits no event, or not for long.
_FULL = 99.0


@dataclass(frozen=True, slots=True)
class Sight:
    """How one process sees one region."""

    region: str
    state: str
    good: bool
    error: str = ""
    missing_topics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One publisher process, as it said last.

    :ivar age: seconds since then.
    :ivar taken_up: whether it knows what is wanted of regions now.
    """

    row: PublisherProcess
    age: float
    stale: bool
    taken_up: bool
    order: tuple[str, ...]
    sights: tuple[Sight, ...]

    @property
    def late(self) -> bool:
        """Whether its upkeep (probing, draining) has not come round for long."""
        return bool(self.row.state.get("upkeep_late"))


@dataclass(slots=True)
class RegionView:
    """One region: what is wanted of it, and how the live processes see it.

    :ivar place: its place in the order that is wanted, from 1; 0 when it is drained.
    """

    name: str
    url: str
    place: int
    wish: RegionWish | None
    seen: int = 0
    good: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def drained(self) -> bool:
        """Whether it is to get nothing."""
        return self.wish is not None and self.wish.drained

    @property
    def first(self) -> bool:
        """Whether it is wished to be used before the others."""
        return self.wish is not None and self.wish.first

    @property
    def takes(self) -> bool:
        """Whether any live process sees it take records."""
        return self.good > 0


@dataclass(frozen=True, slots=True)
class SpoolView:
    """The spool of one folder on one host, as the latest report about it says.

    :ivar refuses: why it takes no event now, as any live process there says; else empty.
    :ivar taking: whether any live process there sees a region take records.
    """

    host: str
    folder: str
    records: int
    used_bytes: int
    max_bytes: int
    refused: int
    oldest: datetime | None
    drain: str
    problem: str
    refuses: str
    taking: bool
    processes: int
    stale: bool

    @property
    def fill(self) -> float:
        """Per cent of SPOOL_MAX_BYTES."""
        return min(100.0, 100 * self.used_bytes / self.max_bytes) if self.max_bytes else 0.0

    def __str__(self) -> str:
        """One line for a terminal."""
        since = f", the oldest of {self.oldest:{TIME}}" if self.oldest else ""
        return (
            f"{self.host} {self.folder}: {self.fill:.1f} % of {size(self.max_bytes)}, "
            f"{self.records:,} waiting{since}, {self.refused:,} refused; {self.state[1]}"
        )

    def document(self) -> dict[str, Any]:
        """The same for programs."""
        return {**asdict(self), "fill": round(self.fill, 2), "state": self.state[1]}

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return max(0, self.max_bytes - self.used_bytes)

    @property
    def state(self) -> tuple[str, str]:
        """How it is, as "bad", "busy", "good" or "unknown", and in words, with the cure."""
        if self.stale:
            return "unknown", self.problem or "not heard"
        if self.problem:
            return "bad", self.problem
        full = bool(self.refuses) or self.fill >= _FULL
        cure = ""
        if self.refused:
            number = f"{self.refused:,} refused record" + ("" if self.refused == 1 else "s")
            cure = f"{number}: send again, or discard"
        why = self.refuses.rstrip(".") or "it is full"
        if full and not self.taking:
            return "bad", "; ".join(part for part in (f"events are refused: {why}", cure) if part)
        if full and not self.records:
            return "bad", "; ".join(part for part in (why, cure) if part)
        if self.records and not (self.taking and self.drain == "draining"):
            return "bad", "waits for a region"
        if self.records:
            return "busy", "full, and draining" if full else "draining"
        return ("bad", cure) if cure else ("good", "empty")


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that operators look at first."""

    wishes: Wishes
    regions: tuple[RegionView, ...]
    processes: tuple[ProcessView, ...]
    spools: tuple[SpoolView, ...]
    more: int = 0

    @property
    def live(self) -> list[ProcessView]:
        """Processes that were heard lately."""
        return [process for process in self.processes if not process.stale]

    @property
    def taken_up(self) -> int:
        """How many live processes know what is wanted now."""
        return sum(process.taken_up for process in self.live)

    @property
    def settled(self) -> bool:
        """Whether every live process knows what is wanted now."""
        return self.taken_up == len(self.live)

    @property
    def names(self) -> tuple[str, ...]:
        """The regions in the configured order."""
        return tuple(region.name for region in self.regions)

    def region(self, name: str) -> RegionView | None:
        """The region of that name."""
        return next((region for region in self.regions if region.name == name), None)


def look(now: float | None = None) -> Overview:
    """Return what is known.

    :param now: epoch seconds.
    :raises django.db.Error: the database does not answer, or has no tables yet.
    """
    now = time.time() if now is None else now
    wishes = {wish.region: wish for wish in RegionWish.objects.all()}
    wanted = wished((wish.region, wish.drained, wish.first) for wish in wishes.values())
    rows = list(PublisherProcess.objects.order_by("-last_seen")[: MOST + 1])
    shown = sorted(rows[:MOST], key=lambda row: (row.host, row.pid))
    processes = tuple(_process(row, wanted, now) for row in shown)
    live = [process for process in processes if not process.stale]
    urls = conf.region_urls()
    told = [sight.region for process in live for sight in process.sights]
    asked = [name for name, wish in wishes.items() if wish.drained or wish.first]
    names = list(dict.fromkeys([*urls, *told, *asked]))
    processes = tuple(_aligned(process, names) for process in processes)
    order = arranged(names, wanted)
    regions = []
    live = [process for process in processes if not process.stale]
    for name in names:
        place = order.index(name) + 1 if name in order else 0
        view = RegionView(name, urls.get(name, ""), place, wishes.get(name))
        for process in live:
            for sight in process.sights:
                if sight.region == name and sight.state:
                    view.seen += 1
                    view.good += sight.good
                    if sight.error and sight.error not in view.problems:
                        view.problems.append(sight.error)
        regions.append(view)
    return Overview(
        wanted, tuple(regions), processes, tuple(_spools(processes)), int(len(rows) > MOST)
    )


def _process(row: PublisherProcess, wanted: Wishes, now: float) -> ProcessView:
    age = max(0.0, now - _epoch(row.last_seen))
    state = row.state
    return ProcessView(
        row=row,
        age=age,
        stale=age > STALE,
        taken_up=(state.get("drained", []), state.get("first"))
        == (sorted(wanted.drained), wanted.first),
        order=tuple(state.get("order", ())),
        sights=tuple(_sight(name, seen) for name, seen in state.get("regions", {}).items()),
    )


def _aligned(process: ProcessView, names: Iterable[str]) -> ProcessView:
    """With a sight for each region, in order; one that it has not configured is empty."""
    by_name = {sight.region: sight for sight in process.sights}
    sights = tuple(by_name.get(name, Sight(name, "", False)) for name in names)
    return replace(process, sights=sights)


def _sight(name: str, seen: dict[str, Any]) -> Sight:
    missing = tuple(seen.get("missing_topics", ()))
    if not seen.get("known"):
        state, good = "not looked at yet", False
    elif not seen.get("up"):
        state, good = "down", False
    elif seen.get("open"):
        state, good = "given up for now", False
    elif missing:
        state, good = "up, topics missing", True
    else:
        state, good = "up", True
    return Sight(name, state, good, seen.get("error", ""), missing)


def _spools(processes: Iterable[ProcessView]) -> list[SpoolView]:
    latest: dict[tuple[str, str], list[ProcessView]] = {}
    for process in processes:
        spool = process.row.state.get("spool", {})
        latest.setdefault((process.row.host, spool.get("folder", "")), []).append(process)
    found = []
    for (host, folder), group in latest.items():
        live = [process for process in group if not process.stale]
        newest = min(live or group, key=lambda process: process.age)
        spool = newest.row.state.get("spool", {})
        oldest = spool.get("oldest")
        found.append(
            SpoolView(
                host=host,
                folder=folder,
                records=spool.get("records", 0),
                used_bytes=spool.get("used_bytes", 0),
                max_bytes=spool.get("max_bytes", 0),
                refused=spool.get("refused", 0),
                oldest=uptake.moment(oldest) if oldest else None,
                drain=spool.get("drain", ""),
                problem=spool.get("problem", ""),
                # Of several processes, those know that an event has found no room.
                refuses=next(
                    (
                        why
                        for each in live
                        if (why := each.row.state.get("spool", {}).get("refuses"))
                    ),
                    "",
                ),
                taking=any(
                    sight.good and sight.region in each.order
                    for each in live
                    for sight in each.sights
                ),
                processes=len(live),
                stale=not live,
            )
        )
    return found


def _epoch(moment: datetime) -> float:
    return moment.timestamp()
