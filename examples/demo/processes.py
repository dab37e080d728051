"""Starts, watches and stops the processes of the demo; none outlives it, however it ends."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from . import guardian

#: Seconds that killed processes get to be gone.
_KILLED_WITHIN = 5.0


class DemoError(Exception):
    """The demo cannot go on; the message is for the person in front of it and says what to do."""


class ChildDied(DemoError):
    """A process ended that should run on."""


class NotReady(DemoError):
    """Something did not come about in time."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or a closed terminal; not an error, and no ``except Exception`` takes it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to be run.

    :ivar name: what people call it; its log is ``<name>.log``.
    :ivar environ: its whole environment.
    :ivar ready: asked again and again until it says yes; a failed connection is a no.
    :ivar patience: seconds it gets to end by itself when it is asked to stop.
    :ivar folder: its working directory; None is ours.
    :ivar rank: lower ranks are stopped before higher ones, those of one rank together.
    """

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str]
    ready: Callable[[], bool] = lambda: True
    patience: float = 12.0
    folder: Path | None = None
    rank: int = 0


class Child:
    """A running :class:`Program`, leader of a process group of its own."""

    def __init__(self, program: Program, process: subprocess.Popen[bytes], log: Path) -> None:
        self.program = program
        self.process = process
        self.log = log
        self.is_ready = False
        self.may_end = False

    @property
    def group(self) -> int:
        """Its process group, which its own children are in too."""
        return self.process.pid

    def died(self) -> ChildDied | None:
        """The error to be raised when it has ended, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        lines = last_lines(self.log)
        return ChildDied(f"{self.program.name} {how}. Its log, {self.log}, ends with:\n{lines}")


class Supervisor:
    """The demo's processes, as a context: leaving it, in whatever way, stops them all.

    :param logs: folder of the log files.
    :param on_change: gets all process groups and their names whenever one is added, or done.
    """

    def __init__(
        self, logs: Path, on_change: Callable[[dict[int, str]], None] = lambda groups: None
    ) -> None:
        self.logs = logs
        self._on_change = on_change
        self.children: list[Child] = []
        self._starting = False
        self._interrupted = False
        self._guardian: subprocess.Popen[str] | None = None

    def __enter__(self) -> Supervisor:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self._guardian is not None and self._guardian.stdin is not None:
            self._guardian.stdin.close()
            self._guardian.wait()

    def handle_signals(self) -> None:
        """Let Ctrl-C, SIGTERM and a closed terminal raise :class:`Interrupted`."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            # It is stopping already; what does not end is killed in the end.
            return
        self._interrupted = True
        # Half a start would leave a process that nobody knows of: that is finished first.
        if not self._starting:
            raise Interrupted

    @contextmanager
    def _uninterrupted(self) -> Iterator[None]:
        self._starting = True
        try:
            yield
        finally:
            self._starting = False
        if self._interrupted:
            raise Interrupted

    def start(self, program: Program) -> Child:
        """Start `program`; does not wait until it is ready."""
        log = self.logs / f"{program.name}.log"
        with self._uninterrupted(), log.open("wb") as output:
            process = subprocess.Popen(
                program.argv,
                env=dict(program.environ),
                cwd=program.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            child = Child(program, process, log)
            self.children.append(child)
            self._tell(f"+{child.group}")
            self._changed()
        return child

    def _changed(self) -> None:
        self._on_change({child.group: child.program.name for child in self.children})

    def start_task(self, program: Program) -> Child:
        """Start `program`, which is to end by itself; :meth:`finish_task` waits for it."""
        child = self.start(program)
        child.is_ready = child.may_end = True
        return child

    def finish_task(self, child: Child, timeout: float) -> str:
        """Wait for the end of what :meth:`start_task` started; return its output.

        :raises DemoError: it failed; the message holds the end of its output.
        :raises NotReady: it takes longer than `timeout` seconds.
        """
        name = child.program.name
        self.until(lambda: child.process.poll() is not None, timeout, f"{name} to finish")
        self.children.remove(child)
        self._tell(f"-{child.group}")
        # Its number may be somebody else's from now on.
        self._changed()
        if child.process.returncode:
            raise DemoError(f"{name} failed:\n{last_lines(child.log)}")
        return child.log.read_text(errors="replace")

    def check(self) -> None:
        """Notice a process that is gone.

        :raises ChildDied: naming it, with the end of its log.
        """
        for child in self.children:
            error = None if child.may_end else child.died()
            if error is not None:
                raise error

    def until(
        self, condition: Callable[[], bool], timeout: float, what: str, pause: float = 0.05
    ) -> None:
        """Return once `condition` holds, watching the processes meanwhile.

        :raises ChildDied: a process ended.
        :raises NotReady: after `timeout` seconds; `what` says what was waited for.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise NotReady(f"Waited {timeout:g} s for {what}. The logs are in {self.logs}.")
            time.sleep(pause)

    def wait_ready(self, timeout: float, on_ready: Callable[[str], None]) -> None:
        """Return once every process says that it is ready; `on_ready` gets each name."""

        def all_ready() -> bool:
            for child in self.children:
                if not child.is_ready and _says_yes(child.program.ready):
                    child.is_ready = True
                    on_ready(child.program.name)
            return all(child.is_ready for child in self.children)

        try:
            self.until(all_ready, timeout, "all processes to be ready", pause=0.1)
        except NotReady:
            late = next(child for child in self.children if not child.is_ready)
            raise NotReady(
                f"{late.program.name} was not ready within {timeout:g} s. Its log, {late.log}, "
                f"ends with:\n{last_lines(late.log)}"
            ) from None

    def stop(self, on_stop: Callable[[str], None] = lambda name: None) -> None:
        """Stop all processes, rank by rank; killed when they do not end in time."""
        self._starting = True  # Nor is the end left half done.
        try:
            while self.children:
                rank = min(child.program.rank for child in self.children)
                together = [child for child in self.children if child.program.rank == rank]
                on_stop(", ".join(child.program.name for child in together))
                self._stop_together(together)
                for child in together:
                    self._tell(f"-{child.group}")
                    self.children.remove(child)
        finally:
            self._starting = False

    def _stop_together(self, children: Sequence[Child]) -> None:
        for child in children:
            if child.process.poll() is None:
                # The leader alone: it ends its own children in good order.
                child.process.terminate()
        deadline = time.monotonic() + max(child.program.patience for child in children)
        for child in children:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
            # Whatever is left of the group; the leader too if it would not end.
            try:
                os.killpg(child.group, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.process.wait()
        # A kill takes its time to arrive.
        deadline = time.monotonic() + _KILLED_WITHIN
        while any(guardian.alive(child.group) for child in children):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)

    def _tell(self, line: str) -> None:
        if self._guardian is None or self._guardian.stdin is None:
            return
        try:
            self._guardian.stdin.write(f"{line}\n")
            self._guardian.stdin.flush()
        except OSError:
            # Somebody killed the guardian; we still stop everything ourselves.
            pass


def last_lines(log: Path, count: int = 15) -> str:
    """Return the end of a log file, indented."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        lines = []
    return "\n".join(f"    {line}" for line in lines) or "    (it is empty)"


def log_says(log: Path, words: str) -> Callable[[], bool]:
    """A readiness question: has the process written `words` to its log?"""
    return lambda: words in log.read_text(errors="replace")


def _says_yes(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except (OSError, http.client.HTTPException):
        return False


def clean_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without any setting of the audit, plus `extra`.

    The demo must not write to a production database that somebody's shell names.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AUDIT_", "INVENTORY_", "DJANGO_"))
    }
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra)
