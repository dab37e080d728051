"""Who holds the demo's folder and ports: the pid file of a run, and the owners of busy ports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .processes import DemoError

#: Seconds that an earlier run gets to stop its processes.
PATIENCE = 40.0


def identity(pid: int) -> str | None:
    """Return when process `pid` started, which tells it from a later one with its number.

    None when there is no such process.
    """
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        try:
            # The name, in parentheses, may hold anything; counting starts behind it.
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]
    if Path("/proc/self/stat").exists():
        return None
    shown = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None


def command_of(pid: int) -> str:
    """Return the command line of process `pid`, shortened; empty when it cannot be seen."""
    shown = ""
    with suppress(OSError):
        shown = (
            Path(f"/proc/{pid}/cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode("utf-8", "replace")
        )
    return shown.strip()[:80]


class RunFile:
    """Says which process runs the demo in a folder, and which process groups it started.

    :param path: the file; removed when the run ends well.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._groups: dict[int, str] = {}

    def write(self, groups: Mapping[int, str] = {}) -> None:
        """Record this process and the `groups` (number → name) it has started."""
        document = {
            "pid": os.getpid(),
            "started": identity(os.getpid()),
            "groups": {str(group): [name, identity(group)] for group, name in groups.items()},
        }
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(document))
        temporary.replace(self.path)

    def remove(self) -> None:
        """The run is over."""
        self.path.unlink(missing_ok=True)

    def clear_stale(self, say: Callable[[str], None], patience: float = PATIENCE) -> None:
        """Stop what an earlier run in the same folder left; never a process that is not ours.

        :raises DemoError: it does not stop.
        """
        try:
            document = json.loads(self.path.read_text())
            pid, started = int(document["pid"]), document["started"]
            groups = {int(group): tuple(known) for group, known in document["groups"].items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError):
            say(f"The pid file {self.path} of an earlier run is not readable; it is ignored.")
            self.remove()
            return
        if pid != os.getpid() and started is not None and identity(pid) == started:
            say(f"An earlier demo (process {pid}) still runs in this folder; stopping it.")
            os.kill(pid, signal.SIGTERM)
            if not _gone(lambda: identity(pid) != started, patience):
                raise DemoError(
                    f"The earlier demo, process {pid}, does not stop. End it with "
                    f"`kill -9 {pid}`, then try again."
                )
        left = {
            group: name
            for group, (name, begun) in groups.items()
            if begun is not None and identity(group) == begun
        }
        for group, name in left.items():
            say(f"An earlier demo left its {name} (process {group}) behind; stopping it.")
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        if not _gone(lambda: not any(identity(group) for group in left), patience / 4):
            for group in left:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            _gone(lambda: not any(identity(group) for group in left), patience / 4)
        self.remove()


def _gone(condition: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True, slots=True)
class Port:
    """A port that the demo wants on 127.0.0.1.

    :ivar use: what for, as people say it: ``the publisher``.
    """

    number: int
    use: str


def check_ports(ports: list[Port], how_to_choose: str) -> None:
    """Make sure that all `ports` are free.

    :param how_to_choose: how the person picks other ports, for the message.
    :raises DemoError: naming each busy port, who holds it, and both cures.
    """
    busy = [port for port in ports if not _is_free(port.number)]
    if busy:
        raise DemoError("\n".join([*(_sentence(port) for port in busy), how_to_choose]))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT may be taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _sentence(port: Port) -> str:
    start = f"Port {port.number}, which {port.use} needs, is in use"
    owner = _owner(port.number)
    if owner is None:
        return f"{start}; `lsof -i :{port.number}` shows by whom. Stop that program."
    return f"{start} by process {owner} ({command_of(owner)}). Stop it with `kill {owner}`."


def _owner(port: int) -> int | None:
    # Linux alone, and only for processes that we may look into; elsewhere lsof is named.
    wanted = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                # 0A is a listening socket.
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    wanted.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    if str(descriptor.readlink()) in wanted:
                        return int(process.name)
    return None
