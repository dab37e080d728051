"""What every service shares: its life as processes, a free port, a data folder, its log."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.services import processes
from tests.services.errors import NotOurs, ServiceError, StartFailed, Unavailable
from tests.services.install import Program

HOST = "127.0.0.1"
POLL_SECONDS = 0.05
LOG_LINES = 40


class Service:
    """One server. Either its address was given in the environment, or its processes are ours.

    A subclass says which programs it needs (`programs`), what to write before the first start
    (`prepare`), what to run (`launch`), how to ask whether it is ready (`ask`) and its `url`.
    """

    name: str
    env_name: str
    programs: tuple[Program, ...] = ()
    ready_within = 60.0
    stop_within = 15.0
    stop_signal = signal.SIGTERM

    def __init__(self, *, own: bool = False, environ: Mapping[str, str] = os.environ) -> None:
        """`own=True` ignores the environment: for a test that kills or pauses its server."""
        self.given = None if own else environ.get(self.env_name) or None
        self.port = 0
        self.root: Path | None = None
        self._processes: list[subprocess.Popen[bytes]] = []
        self._maker = os.getpid()

    # What a subclass says -----------------------------------------------------------------

    def prepare(self) -> None:
        """Write configuration and empty data into `self.root`; called once per data folder."""

    def launch(self) -> None:
        """Start the processes with `self.spawn`; the server itself last."""
        raise NotImplementedError

    def ask(self) -> None:
        """Ask the server something only a ready one answers; raise whatever comes if it is not."""
        raise NotImplementedError

    def settle(self) -> None:
        """What is left to do once our own server answers."""

    @property
    def url(self) -> str:
        raise NotImplementedError

    @property
    def address(self) -> str:
        """host:port, without scheme and credentials."""
        return urlsplit(self.url).netloc.rpartition("@")[2]

    # Life ---------------------------------------------------------------------------------

    def install(self) -> None:
        """Have every program this service needs, or raise `Unavailable`."""
        for program in self.programs:
            program.ensure()

    def start(self) -> Self:
        """Start and wait until it answers. After `kill()`, the same port and data are used."""
        if self.given:
            self._wait_until_ready()
            return self
        if self.running:
            return self
        self.install()
        try:
            if self.root is None:
                self._make_root()
                self.prepare()
            self._clear_processes()
            self.launch()
            self._wait_until_ready()
            self.settle()
        except BaseException:
            self.stop(graceful=False)
            raise
        return self

    def stop(self, *, graceful: bool = True) -> None:
        """Stop by pid, politely and then by force, and remove the data."""
        if self.given or self._maker != os.getpid():
            return  # not ours; or a forked child is leaving, and its parent still needs it
        self._end_processes(graceful=graceful)
        if self.root is not None:
            shutil.rmtree(self.root, ignore_errors=True)
            processes.guardian().forget_folder(self.root)
            self.root = None

    def restart(self) -> Self:
        """Stop and start on the same port and data."""
        self._must_be_ours("restart")
        self._end_processes(graceful=True)
        return self.start()

    def kill(self) -> None:
        """SIGKILL, as a crash would; the data stays for a later `start()`."""
        self._must_be_ours("kill")
        self._end_processes(graceful=False)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._must_be_ours("pause")
        for process in self._processes:
            processes.signal_tree(process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause()`."""
        self._must_be_ours("resume")
        for process in self._processes:
            processes.signal_tree(process.pid, signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether our server's process lives (paused counts as living)."""
        return bool(self._processes) and self._processes[-1].poll() is None

    @property
    def pid(self) -> int | None:
        return self._processes[-1].pid if self.running else None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "given" if self.given else "running" if self.running else "stopped"
        return f"<{self.name}: {state}>"

    # Log ----------------------------------------------------------------------------------

    @property
    def log_path(self) -> Path | None:
        """Where the server's output goes; None if the server is not ours or was stopped."""
        return self.root / "server.log" if self.root else None

    def tail_log(self, lines: int = LOG_LINES) -> str:
        path = self.log_path
        if path is None or not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    # For subclasses -----------------------------------------------------------------------

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        account: processes.Account | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process that belongs to this service and ends with it."""
        with self._log().open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
                **processes.as_account(account),
            )
        processes.guardian().watch(process.pid)
        self._processes.append(process)
        return process

    def run(
        self, command: Sequence[str | Path], *, account: processes.Account | None = None
    ) -> None:
        """Run a preparing command to its end; its output goes to the same log."""
        with self._log().open("ab") as log:
            done = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                timeout=self.ready_within,
                check=False,
                **processes.as_account(account),
            )
        if done.returncode:
            name = Path(command[0]).name
            raise StartFailed(f"{self.name}: {name} ended with {done.returncode}", self.tail_log())

    # Inside -------------------------------------------------------------------------------

    def _log(self) -> Path:
        if self.log_path is None:
            raise ServiceError(f"{self.name} has no data folder: start() it")
        return self.log_path

    def _make_root(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix=f"audit-{self.name}-"))
        processes.guardian().watch_folder(self.root)
        self.port = processes.free_port()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_within
        while True:
            if not self.given and not self.running:
                code = self._processes[-1].returncode
                raise StartFailed(f"{self.name} ended with {code} at start", self.tail_log())
            try:
                self.ask()
                # Asked again below: an answer counts only if it was our process that gave it.
                if self.given or self.running:
                    return
            except ImportError as error:
                raise Unavailable(
                    f"the Python client of {self.name}",
                    str(error),
                    "pip install -r requirements/dev.lock",
                ) from error
            except Exception as error:
                problem = error
                if time.monotonic() > deadline:
                    where = f"{self.env_name}={self.given}" if self.given else self.name
                    message = f"{where} did not answer within {self.ready_within:.0f} s: {problem}"
                    raise StartFailed(message, self.tail_log()) from error
            time.sleep(POLL_SECONDS)

    def _end_processes(self, *, graceful: bool) -> None:
        for process in reversed(self._processes):
            processes.end(process, self.stop_signal if graceful else None, self.stop_within)
        self._clear_processes()

    def _clear_processes(self) -> None:
        """Forget processes; what a dead server left running in its group is ended first."""
        for process in self._processes:
            processes.end(process, None, self.stop_within)
            processes.guardian().forget(process.pid)
        self._processes = []

    def _must_be_ours(self, verb: str) -> None:
        if self.given:
            raise NotOurs(f"cannot {verb} {self.name}: its address was given by {self.env_name}")


def start_all(services: Iterable[Service]) -> list[Service]:
    """Start several at once. If one fails, the others are stopped and its error is raised."""
    wanted = list(services)
    # The guardian is one per process; made here so that the threads do not race for it.
    processes.guardian()
    with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
        futures = [pool.submit(service.start) for service in wanted]
    errors = [error for future in futures if (error := future.exception())]
    if errors:
        stop_all(wanted)
        raise errors[0]
    return wanted


def stop_all(services: Iterable[Service]) -> None:
    """Stop several at once."""
    threads = [threading.Thread(target=service.stop) for service in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
