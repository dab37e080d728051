"""Buffer, hand, outbox and spool against a model, step by step, whatever befalls them.

Every captured event is in memory, in the spool, at the broker, or counted as lost; a process that
is killed at any step loses no more than what it had in memory; nothing arrives twice but what the
broker had taken while it seemed to refuse it; and the spool gives the oldest first.
"""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from django.test import RequestFactory
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from audit_logging import metrics
from audit_logging.batch import unpack
from audit_logging.breaker import Breaker
from audit_logging.capture import Exchange
from audit_logging.conf import LoggingSettings
from audit_logging.policy import Decision
from audit_logging.spool import DurableQueue
from audit_logging.transport import STREAM, Transport

#: deaf: takes the batch, and then seems to have refused it.
Mood = Literal["up", "down", "deaf"]
Where = Literal["before sending", "after sending", "before spooling", "after spooling"]
WHERE: list[Where] = ["before sending", "after sending", "before spooling", "after spooling"]

#: What may happen next; what is named more often happens more often.
ACTIONS: list[tuple[Any, ...]] = [
    *[("requests", 100, 3)] * 4,
    *[("requests", 9_000, 4)] * 2,
    ("requests", 30_000, 2),
    ("requests", 0, 1),
    *[("the_broker_changes", mood) for mood in ("up", "up", "down", "down", "deaf")],
    *[("the_sender_works",)] * 5,
    *[("the_overflow_thread_works",)] * 2,
    *[("the_spool_is_replayed",)] * 3,
    ("time_passes",),
    ("the_spool_fails_for_a_moment",),
    *[("it_is_killed_in_the_act", where, busy) for where in WHERE for busy in (True, False)],
    ("it_is_killed",),
    *[("it_is_stopped",)] * 2,
]
#: Nothing that compresses well, nor that looks like a secret.
TEXT = "".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz ", k=50_000)).encode()
BUFFER_BYTES = 60_000
COUNTERS = {"queued": metrics.queued, "spooled": metrics.spooled, "rejected": metrics.rejected}


class Killed(BaseException):
    """The process ends here; nothing of it runs any more."""


def paths(batches: Iterable[bytes]) -> list[int]:
    """The numbers of the events in packed batches, in order."""
    lines = [json.loads(line) for batch in batches for line in unpack(batch)]
    return [int(line["path"].strip("/")) for line in lines if "record" not in line]


class Accounting(RuleBasedStateMachine):
    """One service's way out; its process ends and begins again now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="audit-accounting-"))
        self.mood: Mood = "up"
        self.kill: Where | None = None
        self.killed = False
        self.captured = 0
        self.arrived: list[int] = []
        self.perhaps_twice: set[int] = set()
        #: Of processes that are no more: events counted as lost, and those that died in memory.
        self.lost = 0
        self.died = 0
        #: Seconds by which the clock is ahead; leases run out by it.
        self.ahead = 0.0

    @initialize(overflow=st.sampled_from(["spool", "spool", "spool", "drop"]))
    def begin(self, overflow: str) -> None:
        self.overflow = overflow
        self.born()

    def born(self) -> None:
        """A process begins."""
        values: dict[str, Any] = {
            "DATA_DIR": self.folder / "data",
            "SERVICE_NAME": "shop",
            "OVERFLOW": self.overflow,
            "BUFFER_SIZE": 6,
            "BUFFER_BYTES": BUFFER_BYTES,
            "BATCH_SIZE": 4,
            "BATCH_BYTES": 50_000,
            "SPOOL_MAX_BYTES": 100_000,
            "BUILD_IN": "thread",
        }
        options = LoggingSettings({f"AUDIT_LOGGING_{k}": str(v) for k, v in values.items()})
        self.before = {name: metric.value() for name, metric in COUNTERS.items()}
        self.own = 0
        self.transport = Transport(self.send, options)
        # Its threads never start: their steps are taken here, one at a time.
        self.transport._sender.stop(0)
        self.transport._overflow.stop(0)
        self.transport.outbox.breaker = Breaker(first=0, longest=0)
        spool = self.transport.spool
        clock, append = spool._clock, spool.append
        spool._clock = lambda: clock() + self.ahead
        spool.append = self.dying("spooling", append)  # type: ignore[method-assign]

    def dying(self, what: str, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act`, before or after which the process may be killed."""

        def wrapped(*args: Any) -> Any:
            if self.kill == f"before {what}":
                raise Killed
            done = act(*args)
            if self.kill == f"after {what}":
                raise Killed
            return done

        return wrapped

    def send(self, batch: bytes, count: int) -> None:
        if count:
            self.dying("sending", self.broker)(batch)

    def broker(self, batch: bytes) -> None:
        if self.mood == "down":
            raise ConnectionError("down")
        self.arrived += paths([batch])
        if self.mood == "deaf" or self.kill == "after sending":
            self.perhaps_twice.update(paths([batch]))
        if self.mood == "deaf":
            raise TimeoutError("no answer")

    @rule(action=st.sampled_from(ACTIONS))
    def something_happens(self, action: tuple[str, ...]) -> None:
        """One rule for all: of many rules each example would try a few alone."""
        name, *arguments = action
        getattr(self, name)(*arguments)

    # -- what befalls it ----------------------------------------------------------------------

    def requests(self, size: int, times: int) -> None:
        for _ in range(times):
            decision = Decision(response_body=True, max_body_bytes=1 << 20)
            made = Exchange(RequestFactory().get(f"/{self.captured}"), decision)
            made.status, made.response_type = 200, "text/plain"
            start = self.captured * 7 % 20_000
            made.response_body, made.response_size = TEXT[start : start + size], size
            self.captured += 1
            self.own += 1
            self.transport.submit(made)

    def the_broker_changes(self, mood: Mood) -> None:
        self.mood = mood

    def the_sender_works(self) -> None:
        self.alive(self.sender)

    def the_overflow_thread_works(self) -> None:
        """The sender hangs at the broker meanwhile."""

        def step() -> None:
            self.transport.outbox.sending_since = -1e9
            self.transport._overflow_step()
            self.transport.outbox.sending_since = None

        self.alive(step)

    def the_spool_is_replayed(self) -> None:
        def step() -> None:
            self.transport.outbox._replay_at = 0.0
            self.transport.outbox.replay()

        self.alive(step)

    def time_passes(self) -> None:
        self.ahead += 400

    def the_spool_fails_for_a_moment(self) -> None:
        """A folder stands where its file was."""
        path = self.transport.spool.path
        self.transport.spool.close()
        moved = [
            Path(f"{path}{end}") for end in ("", "-wal", "-shm") if Path(f"{path}{end}").exists()
        ]
        aside = self.folder / "aside"
        aside.mkdir()
        for file in moved:
            file.rename(aside / file.name)
        path.mkdir(parents=True)
        self.alive(self.sender)
        self.transport.spool.close()
        path.rmdir()
        for file in moved:
            (aside / file.name).rename(file)
        aside.rmdir()

    def it_is_killed_in_the_act(self, where: Where, replaying: bool) -> None:
        self.kill = where
        if replaying:
            self.the_spool_is_replayed()
        else:
            self.the_sender_works()
        self.kill = None

    def it_is_killed(self) -> None:
        self.buried()
        self.born()

    def it_is_stopped(self) -> None:
        def step() -> None:
            assert self.transport.flush(20)
            assert len(self.transport.buffer) == 0

        if self.alive(step):
            self.buried()
            self.born()

    def sender(self) -> None:
        self.transport._gathering = True
        self.transport._send_step()

    def alive(self, step: Callable[[], None]) -> bool:
        """Take a step; return whether the process has survived it."""
        try:
            step()
        except Killed:
            self.killed = True
            self.kill = None
            self.buried()
            self.born()
            return False
        return True

    def buried(self) -> None:
        """The process is no more, and what it had in memory neither."""
        grown = self.grown()
        self.lost += int(grown["rejected"])
        self.died += self.own - int(sum(grown.values()))
        self.transport.spool.close()
        atexit.unregister(self.transport.shutdown)

    # -- what must hold -----------------------------------------------------------------------

    def grown(self) -> dict[str, float]:
        return {name: metric.value() - self.before[name] for name, metric in COUNTERS.items()}

    def spooled(self) -> list[int]:
        path = self.transport.spool.path
        if not path.exists():
            return []
        queue = DurableQueue(path)
        try:
            records = queue.read(STREAM, 0, max_records=10_000, max_bytes=1 << 30)
            return paths(record.value for record in records)
        finally:
            queue.close()

    @precondition(lambda self: hasattr(self, "transport"))
    @invariant()
    def the_books_balance(self) -> None:
        grown = self.grown()
        assert sum(grown.values()) + len(self.transport.buffer) == self.own

    @precondition(lambda self: hasattr(self, "transport"))
    @invariant()
    def everything_is_somewhere(self) -> None:
        in_memory = {int(held.path.strip("/")) for held in self.transport.buffer._queue}
        found = {*self.arrived, *self.spooled(), *in_memory}
        missing = self.captured - len(found)
        counted = self.lost + int(self.grown()["rejected"]) + self.died
        assert missing <= counted
        # Counted as lost and there all the same: what the broker took and seemed to refuse, and
        # what a process was killed over, between the act and the note of it.
        assert self.killed or counted - missing <= len(self.perhaps_twice)

    @precondition(lambda self: hasattr(self, "transport"))
    @invariant()
    def nothing_is_twice_without_a_reason(self) -> None:
        places = Counter([*self.arrived, *self.spooled()])
        assert {n for n, times in places.items() if times > 1} <= self.perhaps_twice

    @precondition(lambda self: hasattr(self, "transport"))
    @invariant()
    def the_oldest_is_first(self) -> None:
        spooled = self.spooled()
        assert spooled == sorted(spooled)

    def teardown(self) -> None:
        if hasattr(self, "transport"):
            # With a good broker everything leaves in the end.
            self.mood = "up"
            for _ in range(100):
                if not self.spooled() and not len(self.transport.buffer):
                    break
                self.the_sender_works()
                self.time_passes()
                self.the_spool_is_replayed()
            assert self.spooled() == []
            self.everything_is_somewhere()
            self.buried()
        shutil.rmtree(self.folder, ignore_errors=True)


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
