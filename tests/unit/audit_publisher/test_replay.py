"""A signed request is taken once: what is claimed, what is given back, and who remembers it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.test import Client
from prometheus_client import REGISTRY

from audit_publisher import authentication, publish
from audit_publisher.conf import PublisherSettings, conf
from audit_publisher.exceptions import StorageExhausted
from audit_publisher.identity import replay, replay_file
from audit_publisher.identity.replay import BUSY, LEASE, TAKEN, CacheClaims, Claim, Claims, Memory
from audit_publisher.identity.replay_file import FileClaims
from audit_publisher.models import Consumer
from audit_publisher.publish import Outcome
from tests.support import fork
from tests.unit.audit_publisher.conftest import BATCH, Configure, stored
from tests.unit.audit_publisher.signed import LEGACY, PSS, Sending, counted, event_body, refusal


@pytest.fixture(autouse=True)
def enforced(configure: Configure) -> None:
    configure(SIGNATURE="enforce")


@pytest.fixture(params=[LEGACY, PSS])
def sending(
    request: pytest.FixtureRequest, api: Client, consumer: Consumer, private_key_file: Path
) -> Sending:
    return Sending(api, private_key_file, request.param)


def unseen(reason: str) -> float:
    labels = {"reason": reason}
    return REGISTRY.get_sample_value("audit_publisher_replays_unseen_total", labels) or 0.0


# -- over HTTP ------------------------------------------------------------------------------


def test_the_same_request_is_taken_once(sending: Sending) -> None:
    body = event_body()
    headers = sending.headers(body)
    before = counted("replayed")
    assert sending.post(body, headers).status_code == 200
    said = refusal(sending.post(body, headers))
    assert (said["code"], said["retryable"]) == ("signature-replayed", False)
    assert counted("replayed") == before + 1
    assert len(stored()) == 1
    # Signed anew it is another request, whose event the lake knows by its id.
    assert sending.post(body, sending.headers(body, shift=-1)).status_code == 200


def test_requests_of_one_millisecond(sending: Sending) -> None:
    one, two = event_body(), event_body()
    moment = sending.headers(one)
    assert sending.post(one, moment).status_code == 200
    if sending.signer.scheme == LEGACY:
        # The same signature by honest means: it says nothing of the body.
        assert sending.post(two, moment).status_code == 200
    else:
        assert refusal(sending.post(two, moment))["code"] == "signature-bad-digest"


def test_what_was_not_taken_may_come_again_as_it_is(
    sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = event_body()
    headers = sending.headers(body)
    publisher = type(publish.get_publisher())
    with monkeypatch.context() as away:
        full = Outcome("rejected", retryable=True, error=StorageExhausted("full"))
        away.setattr(publisher, "submit", lambda self, items, tell: tell([full for _ in items]))
        for _ in range(2):
            assert refusal(sending.post(body, headers), 503)["retryable"]
    with monkeypatch.context() as broken:
        broken.setattr(publisher, "submit", lambda self, items, tell: 1 / 0)
        refusal(sending.post(body, headers), 500)
    assert sending.post(body, headers).status_code == 200
    assert refusal(sending.post(body, headers))["code"] == "signature-replayed"


def test_a_batch_of_which_nothing_is_taken_is_not_used_up(sending: Sending) -> None:
    """Whoever makes a copy unreadable must not use up the honest request's claim."""
    Consumer.objects.update(service_names="payments-api")
    authentication.refresh()
    body = b"[" + event_body() + b"," + event_body() + b"]"
    headers = sending.headers(body, url=BATCH)
    answer = sending.post(body, headers, BATCH)
    assert {item["status"] for item in answer.json()["items"]} == {"rejected"}
    Consumer.objects.update(service_names="inventory-api")
    authentication.refresh()
    answer = sending.post(body, headers, BATCH)
    assert {item["status"] for item in answer.json()["items"]} == {"published"}
    assert refusal(sending.post(body, headers, BATCH))["code"] == "signature-replayed"


def test_what_the_sender_may_not_send_is_not_used_up(sending: Sending) -> None:
    Consumer.objects.update(service_names="payments-api")
    authentication.refresh()
    body = event_body()
    headers = sending.headers(body)
    refusal(sending.post(body, headers), 422)
    Consumer.objects.update(service_names="inventory-api")
    authentication.refresh()
    assert sending.post(body, headers).status_code == 200


def test_a_wrong_body_does_not_use_up_the_signature(sending: Sending) -> None:
    body = event_body()
    headers = sending.headers(body)
    sending.post(b"{}", headers)
    assert sending.post(body, headers).status_code == 200


def test_while_it_is_being_taken(sending: Sending, monkeypatch: pytest.MonkeyPatch) -> None:
    body = event_body()
    headers = sending.headers(body)
    publisher = type(publish.get_publisher())
    submit = publisher.submit
    answers: list[Any] = []

    def while_it_waits(self: Any, items: Any, tell: Any) -> None:
        # On a thread of its own, as another worker's.
        with ThreadPoolExecutor(1) as other:
            answers.append(other.submit(sending.post, body, headers).result())
        submit(self, items, tell)

    monkeypatch.setattr(publisher, "submit", while_it_waits)
    assert sending.post(body, headers).status_code == 200
    said = refusal(answers[0], 409)
    assert (said["code"], said["retryable"]) == ("in-progress", True)
    assert answers[0]["Retry-After"] == "1"
    assert len(stored()) == 1


@pytest.mark.parametrize(
    ("general", "own", "status"),
    [
        ("enforce", "inherit", 401),
        ("enforce", "report", 200),
        ("enforce", "off", 200),
        ("report", "inherit", 200),
        ("off", "enforce", 401),
        ("off", "inherit", 200),
    ],
)
def test_rules(sending: Sending, configure: Configure, general: str, own: str, status: int) -> None:
    configure(SIGNATURE="enforce", REPLAY=general)
    Consumer.objects.update(replay=own)
    authentication.refresh()
    body = event_body()
    headers = sending.headers(body)
    before = counted("replayed")
    assert sending.post(body, headers).status_code == 200
    assert sending.post(body, headers).status_code == status
    looked = "off" not in {own, general if own == "inherit" else own}
    assert counted("replayed") == before + looked


def test_where_signatures_are_only_reported_so_are_replays(
    sending: Sending, configure: Configure
) -> None:
    configure(SIGNATURE="report")
    authentication.refresh()
    body = event_body()
    headers = sending.headers(body)
    before = counted("replayed")
    assert [sending.post(body, headers).status_code for _ in range(2)] == [200, 200]
    assert counted("replayed") == before + 1


def test_legacy_polls_of_one_millisecond(
    api: Client, consumer: Consumer, private_key_file: Path
) -> None:
    sending = Sending(api, private_key_file, LEGACY)
    path = "/v1/config/inventory-api"
    headers = sending.headers(None, method="GET", url=path)
    assert {api.get(path, headers=headers).status_code for _ in range(2)} == {200}


def test_a_store_that_fails_loses_nothing(sending: Sending, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = unseen("store")
    replay.get_memory()._claims = FileClaims(tmp_path / "file" / "is-no-folder")
    body = event_body()
    headers = sending.headers(body)
    assert [sending.post(body, headers).status_code for _ in range(2)] == [200, 200]
    assert unseen("store") == before + 2


def test_a_cache_that_hosts_share(
    sending: Sending, configure: Configure, settings: Any, tmp_path: Path
) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "shared": {"BACKEND": "tests.unit.audit_publisher.signed.SharedCache"},
    }
    caches["shared"].clear()
    configure(SIGNATURE="enforce", REPLAY_CACHE="shared")
    authentication.refresh()
    body = event_body()
    headers = sending.headers(body)
    assert sending.post(body, headers).status_code == 200
    # Another host's process.
    configure(SIGNATURE="enforce", REPLAY_CACHE="shared", DATA_DIR=tmp_path / "other")
    authentication.refresh()
    assert refusal(sending.post(body, headers))["code"] == "signature-replayed"


@pytest.mark.parametrize(
    ("alias", "said"), [("nowhere", "not in CACHES"), ("default", "which hosts do not share")]
)
def test_a_cache_that_cannot_do_is_named(settings: Any, alias: str, said: str) -> None:
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    (found,) = PublisherSettings(environ={"AUDIT_PUBLISHER_REPLAY_CACHE": alias}).problems()
    assert said in str(found)


# -- the stores -----------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["file", "cache"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Claims]:
    if request.param == "file":
        yield FileClaims(tmp_path / "spool" / "replays.bin")
    else:
        caches["default"].clear()
        yield CacheClaims("default")
        caches["default"].clear()


def test_claims(store: Claims) -> None:
    clock = Clock()
    memory = Memory(lambda: store, clock)
    until = clock.now + 210
    first = memory.claim(b"a", until)
    assert isinstance(first, Claim)
    assert memory.claim(b"a", until) == BUSY
    assert isinstance(memory.claim(b"b", until), Claim)
    first.settle(taken=False)
    again = memory.claim(b"a", until)
    assert isinstance(again, Claim)
    again.settle(taken=True)
    assert memory.claim(b"a", until) == TAKEN
    # Whoever comes too late gives back nothing that is another's.
    first.settle(taken=False)
    assert memory.claim(b"a", until) == TAKEN


def test_a_claim_that_nobody_settled_lapses(tmp_path: Path) -> None:
    clock = Clock()
    store = FileClaims(tmp_path / "replays.bin")
    until = clock.now + 210
    lost = Memory(lambda: store, clock).claim(b"a", until)
    assert isinstance(lost, Claim)
    clock.now += LEASE - 1
    assert Memory(lambda: store, clock).claim(b"a", until) == BUSY
    clock.now += 2
    later = Memory(lambda: store, clock).claim(b"a", until)
    assert isinstance(later, Claim)
    # The killed one was only slow: what was taken, was taken.
    lost.settle(taken=True)
    later.settle(taken=False)
    assert Memory(lambda: store, clock).claim(b"a", until) == TAKEN
    clock.now = until + 1
    assert isinstance(Memory(lambda: store, clock).claim(b"a", until), Claim)


def test_the_file_is_bounded_and_says_when_it_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_file, "_SETS", 1)
    store = FileClaims(tmp_path / "replays.bin")
    before = unseen("full")
    for number in range(20):
        assert store.claim(b"%016d" % number, 1, 0.0, 100.0 + number) is None
    assert unseen("full") == before + 4
    assert (tmp_path / "replays.bin").stat().st_size == replay_file._SET_BYTES
    assert store.claim(b"%016d" % 19, 1, 0.0, 9.0) == BUSY
    # Those that would have ended first.
    assert store.claim(b"%016d" % 3, 1, 0.0, 500.0) is None


def test_the_file_is_its_owner_s_alone(tmp_path: Path) -> None:
    store = FileClaims(tmp_path / "spool" / "replays.bin")
    store.claim(b"k" * 16, 1, 0.0, 1.0)
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert store.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_key_that_two_entries_seem_to_hold(tmp_path: Path) -> None:
    entry = replay_file._ENTRY.pack(b"a" * 16, 5.0, 7)
    other = replay_file._ENTRY.pack(b"b" * 16, 5.0, 7)
    seeming = (entry + other)[20:36]
    assert replay_file._find(entry + other, seeming) == -1
    assert replay_file._find(entry + other, b"b" * 16) == 32


def _claim_all(path: Path, gate: Any, wins: Any) -> None:
    store = FileClaims(path)
    gate.wait()
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.extend(
                number
                for number in range(300)
                if store.claim(number.to_bytes(16, "little"), os.getpid(), 0.0, 100.0) is None
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wins.put(found)


def test_of_many_processes_and_threads_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few sets, so that they are in each other's way; none is full.
    monkeypatch.setattr(replay_file, "_SETS", 32)
    context = multiprocessing.get_context("fork")
    gate, wins = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_claim_all, args=(tmp_path / "replays.bin", gate, wins))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    won = Counter(number for _ in processes for number in wins.get(timeout=60))
    for process in processes:
        process.join(60)
    assert won == Counter(range(300))


def _hold(path: Path, held: Any) -> None:
    store = FileClaims(path)
    with replay_file._Locked(store, 0):
        held.set()
        signal.pause()


def test_a_process_that_is_stopped_with_a_lock_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_file, "_SETS", 1)
    monkeypatch.setattr(replay_file, "PATIENCE", 0.05)
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "replays.bin", held))
    process.start()
    try:
        assert held.wait(60)
        clock, waits = Clock(), Clock()
        memory = Memory(lambda: FileClaims(tmp_path / "replays.bin"), clock, waits=waits)
        before = unseen("store")
        assert memory.claim(b"a", clock.now + 10) is None
        # It is not asked again for some seconds.
        assert memory.claim(b"b", clock.now + 10) is None
        assert unseen("store") == before + 2
    finally:
        process.kill()
        process.join(60)
    waits.now += replay.PAUSE + 0.1
    assert isinstance(memory.claim(b"a", clock.now + 10), Claim)


def test_a_fork_goes_on_claiming(tmp_path: Path) -> None:
    store = FileClaims(tmp_path / "replays.bin")
    assert store.claim(b"a" * 16, 1, 0.0, 10.0) is None
    # As if a thread was within when the process was forked.
    store._locks[os.getpid()].acquire()
    pid = fork()
    if pid == 0:
        found = store.claim(b"a" * 16, 2, 0.0, 10.0), store.claim(b"b" * 16, 2, 0.0, 10.0)
        os._exit(0 if found == (BUSY, None) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store._locks[os.getpid()].release()
    assert store.claim(b"b" * 16, 1, 0.0, 10.0) == BUSY


def test_the_file_lies_with_the_spool() -> None:
    replay.get_memory().claim(b"x", time.time() + 10)
    assert (conf.spool_dir() / "replays-1.bin").exists()


def test_a_cache_that_hangs_holds_no_request(settings: Any) -> None:
    # It takes connections, and never answers: a server that is stopped, or cut off.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        settings.CACHES = {
            **settings.CACHES,
            "silent": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            },
        }
        clock = [0.0]
        memory = Memory(lambda: CacheClaims("silent", patience=0.05), waits=lambda: clock[0])
        before = unseen("store")
        # More than there are threads for, each after the pause: none waits for those before.
        for _ in range(12):
            clock[0] += replay.PAUSE
            assert memory.claim(b"a request", time.time() + 300) is None
        assert unseen("store") == before + 12


class Failing:
    """A store that fails as long as it is to; every question is noted."""

    def __init__(self) -> None:
        self.fails = False
        self.asked: list[str] = []
        self.ends: list[float] = []

    def claim(self, key: bytes, token: int, now: float, until: float) -> str | None:
        self.ends.append(until - now)
        return self._ask("claim")

    def keep(self, key: bytes, token: int, now: float, until: float) -> None:
        self._ask("keep")

    def release(self, key: bytes, token: int) -> None:
        self._ask("release")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fails:
            raise ConnectionError("away")


def test_a_store_that_fails_is_left_alone_by_all() -> None:
    store, clock, waits = Failing(), Clock(), Clock()
    waits.now = 0.0
    memory = Memory(lambda: store, clock, waits=waits)
    claims = [memory.claim(b"%d" % number, clock.now + 300) for number in range(5)]
    store.fails, store.asked = True, []
    for claim in claims:
        assert isinstance(claim, Claim)
        claim.settle(taken=True)
    # The first finds out; no answer waits for the others.
    assert store.asked == ["keep"]
    # A clock that is set back prolongs no pause.
    clock.now -= 3600
    store.fails, store.asked = False, []
    waits.now += replay.PAUSE
    assert isinstance(memory.claim(b"later", clock.now + 300), Claim)
    assert store.asked == ["claim"]


def test_a_claim_lasts_longer_than_any_request(configure: Configure) -> None:
    for timeout, lease in ((1.5, LEASE), (60.0, 260.0)):
        configure(DELIVERY_TIMEOUT=timeout)
        memory = replay.get_memory()
        store = Failing()
        memory._claims = store
        memory.claim(b"a", time.time() + 300)
        assert store.ends == [pytest.approx(lease)]
        assert lease > publish.get_publisher().patience


def test_of_a_full_set_what_is_under_way_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_file, "_SETS", 1)
    store = FileClaims(tmp_path / "replays.bin")
    keys = [b"%016d" % number for number in range(17)]
    for key in keys[:16]:
        assert store.claim(key, 7, 0.0, 45.0) is None
    store.keep(keys[3], 7, 0.0, 210.0)
    assert store.claim(keys[16], 7, 0.0, 45.0) is None
    # It was answered, and ends last; those that are being taken are known still.
    assert [store.claim(key, 8, 0.0, 45.0) for key in keys if key != keys[3]] == [BUSY] * 16


def test_a_claim_that_had_to_make_room_is_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_file, "_SETS", 1)
    store = FileClaims(tmp_path / "replays.bin")
    for number in range(17):
        assert store.claim(b"%016d" % number, 7, 0.0, 45.0 + number) is None
    store.keep(b"%016d" % 0, 7, 1.0, 210.0)
    assert store.claim(b"%016d" % 0, 8, 2.0, 45.0) == TAKEN
