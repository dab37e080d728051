"""What only the way in front of Django has: its bound, its event loop, and what it lets through."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from audit_publisher import authentication, eventlog, publish, routing
from audit_publisher.asgi import front
from audit_publisher.eventlog.base import EventLog, Record
from audit_publisher.http import warm
from audit_publisher.http.admission import Admission
from audit_publisher.http.beside import MOST_BODIES, MOST_BODY, MOST_PATH
from audit_publisher.http.body import BodyReader
from audit_publisher.http.problems import Problem
from audit_publisher.models import RegionWish
from audit_publisher.testing import make_event
from tests.unit.audit_publisher.conftest import BATCH, URL, Configure, stored

pytestmark = pytest.mark.usefixtures("routes")
JSON = [(b"content-type", b"application/json"), (b"host", b"testserver")]


@pytest.fixture
def routes(db: None) -> None:
    started()


def started() -> None:
    """As a server's start does, on a thread that may ask the database; anew after `configure`."""
    routing.refresh()
    authentication.refresh()


async def django(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Caller:
    """One request, whose body comes when the test says."""

    def __init__(
        self,
        body: bytes | None = None,
        *,
        path: str = URL,
        method: str = "POST",
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [*JSON, *headers],
            "query_string": b"",
            "client": None,
        }
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []
        self.reads = 0
        if body is not None:
            self.say(body)

    def say(self, body: bytes, more: bool = False) -> None:
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def receive(self) -> Any:
        self.reads += 1
        return await self.messages.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def ask(self, application: Any) -> tuple[int, Any]:
        await application(self.scope, self.receive, self.send)
        if not self.sent:
            return 0, None
        content = self.sent[1]["body"]
        return self.sent[0]["status"], json.loads(content) if content[:1] == b"{" else content


def ask(caller: Caller, application: Any = None) -> tuple[int, Any]:
    return asyncio.run(caller.ask(application or front(django)))


def event(**fields: Any) -> bytes:
    return json.dumps(make_event(**fields)).encode()


def test_everything_else_is_djangos() -> None:
    for path in ("/", "/v1/logs", f"{URL}/", "/v1/config/a", "/health/live"):
        assert ask(Caller(b"", path=path)) == (299, path.encode())


def test_a_large_body_on_any_other_path_is_not_read() -> None:
    caller = Caller(path="/admin/", headers=[(b"content-length", b"5000000")])
    assert ask(caller)[0] == 413
    assert caller.reads == 0

    caller = Caller(path="/v1/nothing")
    for _ in range(50):
        caller.say(b"x" * 100_000, more=True)
    status, document = ask(caller)
    assert (status, document["code"]) == (413, "too-large")
    assert caller.reads == MOST_BODY // 100_000 + 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_post(method: str) -> None:
    caller = Caller(b"", method=method)
    status, _ = ask(caller)
    assert status == 405
    assert (b"Allow", b"POST") in caller.sent[0]["headers"]
    assert bool(caller.sent[1]["body"]) == (method != "HEAD")


def test_a_host_that_is_not_ours() -> None:
    caller = Caller(event())
    caller.scope["headers"] = [JSON[0], (b"host", b"evil.example")]
    status, document = ask(caller)
    assert (status, document["code"]) == (400, "unknown-host")


def test_djangos_paths_have_a_bound_and_a_host() -> None:
    """Before Django, which would write a traceback of each."""
    caller = Caller(b"", path="/nothing", method="GET")
    caller.scope["headers"] = [(b"host", b"evil.example")]
    status, document = ask(caller)
    assert (status, document["code"]) == (400, "unknown-host")
    # A probe in HTTP/1.0 says none; Django goes by the address.
    caller = Caller(b"", path="/health/live", method="GET")
    caller.scope["headers"] = []
    assert ask(caller)[0] == 299
    caller = Caller(b"", path="/nothing", method="GET")
    caller.scope |= {"raw_path": b"/nothing", "query_string": b"x" * MOST_PATH}
    status, document = ask(caller)
    assert (status, document["code"]) == (414, "uri-too-long")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("expect", "200-ok", (417, "expectation-failed")),
        ("expect", "100-Continue", (200, None)),
        ("transfer-encoding", "gzip, chunked", (501, "not-implemented")),
        ("transfer-encoding", "Chunked", (200, None)),
    ],
)
def test_what_is_not_understood_of_a_transfer_is_refused(
    name: str, value: str, expected: tuple[int, str | None]
) -> None:
    status, document = ask(Caller(event(), headers=[(name.encode(), value.encode())]))
    assert (status, document.get("code")) == expected
    if status != 200:
        assert document["error"]["header"].lower() == name


class Pages:
    """An application whose answers wait until they may go on.

    :ivar most: how many requests it has had at a time.
    """

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.now = self.most = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if not scope["path"].startswith("/health/"):
            await self.go_on.wait()
        self.now -= 1
        await django(scope, receive, send)


def test_bodies_that_are_no_events_share_a_bound() -> None:
    async def run() -> list[int]:
        application = front(django)
        # They come, and do not end.
        held = [Caller(path="/admin/") for _ in range(MOST_BODIES // MOST_BODY)]
        tasks = [asyncio.create_task(each.ask(application)) for each in held]
        for each in held:
            each.say(b"x" * MOST_BODY, more=True)
        while any(each.reads < 2 for each in held):
            await asyncio.sleep(0)
        statuses = [(await Caller(b"x", path="/admin/").ask(application))[0]]
        for each in held:
            each.messages.put_nowait({"type": "http.disconnect"})
        await asyncio.gather(*tasks)
        statuses.append((await Caller(b"x", path="/admin/").ask(application))[0])
        return statuses

    assert asyncio.run(asyncio.wait_for(run(), 20)) == [429, 299]


@pytest.mark.parametrize(("method", "at_a_time"), [("POST", 1), ("GET", 4)])
def test_few_requests_are_djangos_at_a_time(method: str, at_a_time: int) -> None:
    """Ten wrong passwords at a time would keep the processor from events for seconds."""

    async def run() -> tuple[int, int, list[int]]:
        pages = Pages()
        application = front(pages)
        asked = [
            asyncio.create_task(Caller(b"", path="/admin/", method=method).ask(application))
            for _ in range(at_a_time + 64)
        ]
        await asyncio.sleep(0)
        refused, _ = await Caller(b"", path="/admin/", method=method).ask(application)
        probed, _ = await Caller(b"", path="/health/live", method="GET").ask(application)
        pages.go_on.set()
        answers = await asyncio.gather(*asked)
        # The probe was beside them.
        return pages.most - 1, refused, [probed, *(status for status, _ in answers)]

    most, refused, statuses = asyncio.run(asyncio.wait_for(run(), 20))
    assert (most, refused, set(statuses)) == (at_a_time, 503, {299})


@pytest.mark.parametrize("twice", [b"WM-SITE-ID", b"wm_site_id", b"Wm-Site_Id"])
def test_a_header_in_two_spellings_is_refused(twice: bytes) -> None:
    status, document = ask(Caller(event(), headers=[(b"wm-site-id", b"1"), (twice.lower(), b"2")]))
    assert (status, document["error"]["header"]) == (400, "wm-site-id")


def test_a_body_in_pieces_without_a_length() -> None:
    caller = Caller()
    body = event()
    for n in range(0, len(body), 100):
        caller.say(body[n : n + 100], more=True)
    caller.say(b"")
    assert ask(caller)[1]["status"] == "published"
    assert len(stored()) == 1


def test_one_that_hangs_up_is_not_answered_and_not_taken() -> None:
    caller = Caller()
    caller.say(event()[:50], more=True)
    caller.messages.put_nowait({"type": "http.disconnect"})
    assert ask(caller) == (0, None)
    assert stored() == []


# -- the bound -------------------------------------------------------------------------------------


def test_what_does_not_fit_is_sent_away_unread_and_fits_later(configure: Configure) -> None:
    configure(MAX_IN_FLIGHT_BYTES=1 << 20)
    started()
    big = event(response_body="x" * 700_000)
    length = (b"content-length", str(len(big)).encode())
    application = front(django)
    before = REGISTRY.get_sample_value("audit_publisher_requests_sent_away_total") or 0.0

    async def run() -> None:
        first, second, third = Caller(headers=[length]), Caller(headers=[length]), Caller(event())
        one = asyncio.create_task(first.ask(application))
        # What is announced and does not come is in nobody's way.
        await asyncio.sleep(0)
        assert (await Caller(big, headers=[length]).ask(application))[0] == 200
        first.say(big[:600_000], more=True)
        while first.reads < 2:
            await asyncio.sleep(0)
        status, document = await asyncio.wait_for(second.ask(application), 10)
        assert (status, document["code"], document["retryable"]) == (429, "too-busy", True)
        assert (b"Retry-After", b"1") in second.sent[0]["headers"]
        assert second.reads == 0
        # Small ones still pass.
        assert (await third.ask(application))[0] == 200
        first.say(big[600_000:])
        assert (await one)[0] == 200
        assert (await Caller(big, headers=[length]).ask(application))[0] == 200
        assert application._admission.bytes == 0  # type: ignore[attr-defined]

    asyncio.run(run())
    assert REGISTRY.get_sample_value("audit_publisher_requests_sent_away_total") == before + 1


def test_what_grows_when_it_is_decompressed_is_counted(configure: Configure) -> None:
    configure(MAX_IN_FLIGHT_BYTES=1 << 20)
    started()
    bomb = gzip.compress(b" " * 1_900_000 + event())
    headers = [(b"content-encoding", b"gzip"), (b"content-length", str(len(bomb)).encode())]
    application = front(django)

    async def run() -> None:
        other = Caller()
        other.say(b"[", more=True)
        waiting = asyncio.create_task(other.ask(application))
        while other.reads < 2:
            await asyncio.sleep(0)
        refused = Caller(bomb, headers=headers).ask(application)
        assert (await asyncio.wait_for(refused, 10))[0] == 429
        other.say(b"]")
        await waiting
        # Alone it is let in, whatever it grows to: its own limit bounds it.
        assert (await Caller(bomb, headers=headers).ask(application))[0] == 200

    asyncio.run(run())


def test_a_place_is_given_back_whatever_happens(configure: Configure) -> None:
    configure(MAX_IN_FLIGHT_BYTES=1 << 20)
    started()
    admission = Admission()
    with admission.place() as one:
        one.take(1 << 20)
        with pytest.raises(Problem), admission.place() as two:
            two.take(1)
        assert admission.bytes == 1 << 20
    assert admission.bytes == 0

    def fail() -> None:
        with admission.place() as place:
            place.take(5)
            raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        fail()
    assert admission.bytes == 0


# -- the event loop --------------------------------------------------------------------------------


class Slow(EventLog):
    """An event log that answers when the test says, from whatever thread."""

    region = "primary"

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.driven = threading.Event()

    def submit(self, topic: str, records: Any, done: Any) -> None:
        self.waiting.append(done)

    def drive(self) -> int:
        self.driven.set()
        return len(self.waiting)

    def append(self, topic: str, records: Any) -> Any:
        raise NotImplementedError

    ensure_topic = partitions = largest_record = watermarks = read = append  # type: ignore[assignment]
    offset_at = commit = committed = close = append  # type: ignore[assignment]


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong on the way: here a region that never says anything."""
    log = Slow()
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    publish.reset()
    made = publish.get_publisher()
    made._open_region = lambda name: log
    made.patience = 0.05
    status, document = ask(Caller(event()))
    assert (status, document["code"], document["retryable"]) == (503, "no-storage", True)
    assert made.publish([("t", Record(b"x"))])[0].retryable


def test_a_refused_body_is_let_go_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors hold frames, frames hold bodies, and in a circle they would wait for the collector."""
    seen: list[weakref.ref[BodyReader]] = []

    class Watched(BodyReader):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(weakref.ref(self))

    monkeypatch.setattr("audit_publisher.asgi.BodyReader", Watched)
    gc.disable()
    try:
        for body, status in ((b"{", 400), (b"{}", 422), (event(request_ts=5), 422)):
            assert ask(Caller(body))[0] == status
            assert seen.pop()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the loop's thread", "another thread"])
def test_requests_wait_side_by_side(monkeypatch: pytest.MonkeyPatch, elsewhere: bool) -> None:
    log = Slow()
    monkeypatch.setattr(eventlog, "get_region", lambda name: log)
    publish.reset()
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    made = publish.get_publisher()
    made._open_region = lambda name: log
    application = front(django)

    def answer() -> None:
        for done in log.waiting:
            done({})

    async def run() -> None:
        callers = [Caller(event()) for _ in range(50)]
        tasks = [asyncio.create_task(caller.ask(application)) for caller in callers]
        while len(log.waiting) < 50:
            await asyncio.sleep(0)
        await asyncio.to_thread(log.driven.wait, 10)
        assert not any(task.done() for task in tasks)
        await (asyncio.to_thread(answer) if elsewhere else asyncio.sleep(0))
        if not elsewhere:
            answer()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}

    asyncio.run(run())


def test_a_large_batch_lets_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit_publisher.asgi._TURN", 0.0)
    log = Slow()
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    publish.reset()
    publish.get_publisher()._open_region = lambda name: log
    batch = Caller(b"\n".join(event() for _ in range(50)), path=BATCH)
    batch.scope["headers"] = [(b"content-type", b"application/x-ndjson"), JSON[1]]
    application = front(django)

    async def run() -> int:
        task = asyncio.create_task(batch.ask(application))
        turns = 0
        while not log.waiting and not task.done():
            await asyncio.sleep(0)
            turns += 1
        log.waiting[0]({})
        status, answer = await task
        assert status == 200
        assert [item["status"] for item in answer["items"]] == ["published"] * 50
        return turns

    # With no time at all, each event has a turn of its own.
    assert asyncio.run(run()) >= 50


def test_the_servers_own_messages_are_answered() -> None:
    async def run() -> list[str]:
        sent: list[str] = []
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> Any:
            return {"type": next(messages)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await front(django)({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_drained_region_gets_nothing_from_a_process_that_starts(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the loop nobody may ask the database: what is wanted is read before."""
    configure(SECONDARY_URL=f"local://{publish.conf.DATA_DIR}/second.sqlite3")
    started()
    RegionWish.objects.create(region="primary", drained=True)
    monkeypatch.setattr(publish.Publisher, "start", lambda self: None)
    monkeypatch.setattr(warm, "_warm", 0)
    warm.warm_up()
    assert ask(Caller(event()))[1]["region"] == "secondary"
