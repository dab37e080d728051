"""Behind each kind of server, twice: what the application answers and lives through is the same.

And each request it was sent is one record, right in what the client can tell of it.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.servers import wire
from tests.integration.servers.conversations import SAID, Said, by_case
from tests.integration.servers.kinds import KINDS, Kind, Served
from tests.services.fixtures import serve
from tests.support import eventually

pytestmark = [pytest.mark.services, pytest.mark.slow]

#: Kinds at which GZipMiddleware stands outside the audit; elsewhere it stands inside.
GZIP_OUTSIDE = re.compile("preload|lazy|nginx")


class Dialogue:
    """Everything in SAID, said once to the audited project and once to the bare one."""

    def __init__(self, kind: Kind, audited: Served, bare: Served) -> None:
        self.kind = kind
        self.gzip_outside = bool(GZIP_OUTSIDE.search(kind.name))
        with ThreadPoolExecutor(2) as both:
            self.audited, self.bare = both.map(self._say_all, (audited, bare))
        expected = sum(_answers(raw) for raw in self.audited.values())
        self.records: list[dict[str, Any]] = []

        def recorded() -> bool:
            self.records = audited.records()
            return len(self.records) >= expected

        try:
            eventually(recorded, 15)
        except AssertionError:
            pass  # the tests below say which are missing
        self.notes = audited.notes, bare.notes
        self.log = audited.tail_log(10_000)

    @staticmethod
    def _say_all(served: Served) -> dict[str, bytes]:
        return {said.name: served.send(said.sent) for said in SAID}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def dialogue(request: pytest.FixtureRequest) -> Iterator[Dialogue]:
    kind: Kind = request.param
    gzip = "outside" if GZIP_OUTSIDE.search(kind.name) else "inside"
    with ExitStack() as stack:
        audited = stack.enter_context(serve(Served(kind, gzip=gzip)))
        bare = stack.enter_context(serve(Served(kind, gzip=gzip, audited=False)))
        yield Dialogue(kind, audited, bare)


def test_every_answer_is_the_same(dialogue: Dialogue) -> None:
    different = {
        name: (with_us, dialogue.bare[name])
        for name, with_us in dialogue.audited.items()
        if _comparable(dialogue, with_us) != _comparable(dialogue, dialogue.bare[name])
    }
    assert different == {}
    assert sum(_answers(raw) for raw in dialogue.bare.values()) >= len(SAID)


def test_the_application_lives_through_the_same(dialogue: Dialogue) -> None:
    """Signals, queries, reads and their sizes, chunks that upload handlers see, closed streams."""
    with_us, without = dialogue.notes

    def difference() -> tuple[Counter[str], Counter[str]]:
        ours, theirs = Counter(with_us()), Counter(without())
        return ours - theirs, theirs - ours

    # The last of them may come a moment after the answer.
    eventually(lambda: difference() == (Counter(), Counter()), 5, lambda: str(difference()))
    assert Counter(without())["finished"] >= len(SAID) - 2


def test_every_request_makes_one_right_record(dialogue: Dialogue) -> None:
    find = by_case(dialogue.records)
    wrong = {}
    for said in SAID:
        raw = dialogue.audited[said.name]
        found = find(said.name)
        if said.name == "odd-method" and not dialogue.kind.any_method:
            # It never reached the application, and so it is no record.
            if found or wire.parse(raw).status != 400:
                wrong[said.name] = f"{len(found)} records of {raw[:100]!r}"
            continue
        if len(found) != _answers(raw):
            wrong[said.name] = f"{len(found)} records of {_answers(raw)} answers"
        elif bad := _wrong(dialogue, said, raw, found[0]):
            wrong[said.name] = bad
    assert wrong == {}
    assert len({event["request_id"] for event in dialogue.records}) == len(dialogue.records)
    numbers: dict[str, list[int]] = {}
    for event in dialogue.records:
        numbers.setdefault(event["producer_epoch"], []).append(event["seq"])
    for given in numbers.values():
        assert sorted(given) == list(range(len(given)))


def test_nothing_of_ours_failed(dialogue: Dialogue) -> None:
    assert "the audit failed" not in dialogue.log
    assert "LOST" not in dialogue.log


def _wrong(
    dialogue: Dialogue, said: Said, raw: bytes, event: dict[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """What the record says, and what it should say, where the two differ."""
    kind = dialogue.kind
    answer = wire.parse(raw)
    wanted = dict(said.record)
    if _answers(raw) == 1 and not said.name.endswith("-breaks"):
        wanted.setdefault("response_code", answer.status)
        # What HEAD leaves out is the server's business; the record has what was left out.
        if "head" not in said.name:
            body = answer.body.replace(wire.RESET, b"")
            zipped = answer.headers.get("content-encoding") == ["gzip"]
            if zipped and dialogue.gzip_outside:
                body = gzip.decompress(body)
            wanted.setdefault("response_size", len(body))
    wanted.update(said.asgi if kind.asgi else said.wsgi)
    if kind.program == "uwsgi":
        wanted.update(said.uwsgi)
    return {name: (event[name], value) for name, value in wanted.items() if event[name] != value}


def _answers(raw: bytes) -> int:
    """How many requests were answered; one whose stream broke may have got nothing at all."""
    return len(re.findall(rb"HTTP/1\.1 (?!100 )\d", raw)) or 1


def _comparable(dialogue: Dialogue, raw: bytes) -> bytes:
    # A proxy cuts a stream into chunks as it happens to receive it.
    return wire.comparable(raw, chunked=not dialogue.kind.proxied)
