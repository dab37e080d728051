"""A broker that stops, dies and comes back, a disk that is full or read-only, under load.

No request waits or fails, and each is recorded in the end, or counted as lost with the reason.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.servers import kinds, records, wire
from tests.integration.servers.kinds import Served
from tests.integration.servers.load import Load, cases
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up, serve
from tests.services.redis import Redis
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

NOBODY = "redis://127.0.0.1:1/0"


def test_redis_stopped_and_killed_under_load() -> None:
    with serve(Redis(own=True)) as redis_server:
        options = {"BROKER_URL": redis_server.url, "BROKER_TIMEOUT": 0.3, "BUFFER_SIZE": 40}
        with serve(Served(kinds.GTHREAD_PRELOAD, workers=2, options=options)) as served:
            _stop_and_kill(redis_server, served)


def _stop_and_kill(redis_server: Redis, served: Served) -> None:
    import redis

    capture = served.folder / "capture"
    with Load(served) as load:
        load.reach(60)
        redis_server.pause()
        # It accepts connections and answers nothing. The service goes on as before.
        load.reach(120)
        redis_server.resume()
        load.reach(30)
        redis_server.kill()
        load.reach(120)
        eventually(lambda: records.spooled(capture), 20, served.tail_log)
        redis_server.start()
        load.reach(30)
    arrived: list[dict[str, Any]] = []

    def all_there() -> bool:
        nonlocal arrived
        with redis.Redis.from_url(redis_server.url, socket_timeout=5) as client:
            messages = client.lrange(records.QUEUE, 0, -1)
        arrived = records.in_messages(messages)  # type: ignore[arg-type]
        return set(cases(arrived)) >= load.answered and not records.spooled(capture)

    def what_is_missing() -> str:
        missing = sorted(load.answered - set(cases(arrived)))
        return f"missing {missing}, spooled {records.spooled(capture)}: {served.tail_log()}"

    eventually(all_there, 60, what_is_missing, pause=0.2)
    # What was sent twice, as its first try only seemed to fail, is one event with one id.
    ids = {(event["path"], event["request_id"]) for event in arrived}
    assert len(ids) == len(cases(arrived))
    assert "LOST" not in served.tail_log(10_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(folder)):
        give_up(Unavailable("a small file system", "mount is not permitted", "run as root"))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    done = subprocess.run(["mount", *arguments], capture_output=True, check=False)
    return done.returncode == 0


def counted(served: Served) -> dict[str, float]:
    """The audit's own counters in the service's one worker."""
    values: dict[str, float] = json.loads(served.get("/counted").body)
    return values


def ask(served: Served, times: int) -> None:
    """Requests whose records take some room."""
    body = json.dumps(random.Random(7).randbytes(40_000).hex()).encode()
    for _ in range(times):
        sent = wire.message("POST", "/echo?case=disk", body, content_type="application/json")
        assert wire.parse(served.send(sent)).body == body


@pytest.mark.parametrize("fault", ["full", "already full", "read-only"])
def test_a_disk_that_takes_nothing_more(small_disk: Path, fault: str) -> None:
    """With the broker down, too; when the disk takes something again, so does the spool."""
    options = {"DATA_DIR": str(small_disk / "capture"), "BROKER_URL": NOBODY}
    if fault == "already full":
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "ballast").write_bytes(b"x" * (4 << 20))
    elif fault == "read-only":
        assert _mount("-o", "remount,ro", str(small_disk))
    with serve(Served(kinds.GTHREAD, options=options)) as served:

        def lost() -> float:
            values = counted(served)
            return values["rejected"]

        def all_accounted_for() -> bool:
            values = counted(served)
            # The question itself is captured, too, after it is answered.
            return values["captured"] <= values["spooled"] + values["rejected"] + 1

        while not lost():
            ask(served, 5)
        eventually(all_accounted_for, 20, lambda: f"{counted(served)}")
        assert "events are LOST" in served.tail_log(10_000)
        # Room again.
        assert _mount("-o", "remount,rw,size=64m", str(small_disk))
        before = counted(served)
        ask(served, 5)
        eventually(lambda: counted(served)["spooled"] >= before["spooled"] + 5, 20, served.tail_log)
        eventually(all_accounted_for, 20, lambda: f"{counted(served)}")
        kept = counted(served)["spooled"]
        assert len(records.spooled(small_disk / "capture")) >= kept


def test_files_that_may_not_grow() -> None:
    """A quota that strikes in the middle of a write."""
    options = {"BROKER_URL": NOBODY}
    with serve(Limited(kinds.GTHREAD, options=options)) as served:
        while not counted(served)["rejected"]:
            ask(served, 5)
        spooled = counted(served)["spooled"]
        assert spooled > 0
        assert len(records.spooled(served.folder / "capture")) >= spooled


class Limited(Served):
    """A server none of whose files may grow over two megabytes."""

    def _command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -f 4096; exec "$@"', "sh", *super()._command()]
