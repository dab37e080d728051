"""Ports, process trees, and a guardian that ends our servers if we are killed ourselves."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

Account = pwd.struct_passwd
REPOSITORY = Path(__file__).resolve().parents[2]

_ports_given: set[int] = set()
_ports_lock = threading.Lock()


def free_port() -> int:
    """A free port on 127.0.0.1, below the range that outgoing connections draw from.

    A port inside that range may be taken by any client while the server is down between a kill
    and its restart, even by its own client: reconnecting to a closed local port can connect to
    itself.
    """
    for _ in range(1000):
        port = random.randint(15000, _first_ephemeral_port() - 1)
        with _ports_lock, socket.socket() as probe:
            if port in _ports_given:
                continue
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _ports_given.add(port)
            return port
    raise OSError("no free port on 127.0.0.1")


def knock(port: int) -> None:
    """Raise OSError unless something listens there: clients take seconds to say so."""
    socket.create_connection(("127.0.0.1", port), timeout=1).close()


@cache
def _first_ephemeral_port() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first = 32768
    return first if first > 16000 else 65536


def as_account(account: Account | None) -> dict[str, Any]:
    """Arguments that make subprocess run as that account, with none of our groups."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def descendants(pid: int) -> dict[int, str]:
    """Every living process below `pid` and when it began; the two together name a process.

    PostgreSQL's children leave the group of their parent, so the group alone is not enough.
    """
    children: dict[int, list[int]] = {}
    began: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _stat(folder):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            began[int(folder.name)] = fields[19]
    found: dict[int, str] = {}
    queue = [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found.update((child, began[child]) for child in below)
        queue += below
    return found


def _stat(folder: Path) -> list[str]:
    """What the kernel tells of a process, from its state on; empty if it is gone."""
    try:
        # pid (command) state parent …; the command may hold spaces and brackets
        return (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def signal_tree(pid: int, number: int, below: dict[int, str] | None = None) -> None:
    """Signal a process group and every process below its leader, or those that once were."""
    known = {**(below or {}), **descendants(pid)}
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # already gone
    for child, began in known.items():
        if (fields := _stat(Path(f"/proc/{child}"))) and fields[19] == began:
            try:
                os.kill(child, number)
            except ProcessLookupError:
                pass  # gone since


def end(process: subprocess.Popen[bytes], polite: signal.Signals | None, seconds: float) -> None:
    """End a process: politely if asked to, then by force, together with all it left behind."""
    below = descendants(process.pid)  # before it goes: its children then have another parent
    if process.poll() is None and polite is not None:
        process.send_signal(polite)
        signal_tree(process.pid, signal.SIGCONT)  # a paused process handles no signal
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    signal_tree(process.pid, signal.SIGKILL, below)
    process.wait()


class Guardian:
    """A small process that outlives us by a moment: if we die, it ends what we left behind.

    Linux can send a child a signal when its parent dies, but it goes by the parent's *thread*,
    and servers are started from short-lived threads. So: one helper at the other end of a pipe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper = subprocess.Popen(
            [sys.executable, "-m", "tests.services.processes"],
            stdin=subprocess.PIPE,
            bufsize=0,
            cwd=REPOSITORY,
            start_new_session=True,  # Ctrl-C is for us; the helper sees the pipe close
        )
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """A forked child must not hold the pipe open when we die; it gets a guardian of its own."""
        assert self._helper.stdin is not None
        self._helper.stdin.close()
        guardian.cache_clear()

    def watch(self, pid: int) -> None:
        self._tell("+process", pid)

    def forget(self, pid: int) -> None:
        self._tell("-process", pid)

    def watch_folder(self, folder: Path) -> None:
        self._tell("+folder", folder)

    def forget_folder(self, folder: Path) -> None:
        self._tell("-folder", folder)

    def _tell(self, verb: str, what: object) -> None:
        pipe = self._helper.stdin
        assert pipe is not None
        with self._lock:
            try:
                pipe.write(f"{verb} {what}\n".encode())
            except BrokenPipeError:
                pass  # somebody ended the helper; nothing else depends on it


@cache
def guardian() -> Guardian:
    """The one guardian of this process."""
    return Guardian()


def _guard() -> None:
    """The guardian's own loop, in the helper process: read what to watch until the pipe closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[str, set[str]] = {"process": set(), "folder": set()}
    for line in sys.stdin:
        verb, _, what = line.rstrip("\n").partition(" ")
        if verb[0] == "+":
            watched[verb[1:]].add(what)
        else:
            watched[verb[1:]].discard(what)
    for pid in watched["process"]:
        signal_tree(int(pid), signal.SIGKILL)
    for folder in watched["folder"]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard()
