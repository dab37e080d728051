"""The demo's requests: repeatable, told apart by their ids, of all kinds, with secrets planted."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from urllib.parse import unquote

from examples.demo.sender import Answer, send, unexpected
from examples.demo.traffic import CONSUMERS, SECRETS, SITES, calls


def test_the_same_seed_gives_the_same_requests() -> None:
    assert calls(120, seed=7) == calls(120, seed=7)
    assert calls(120, seed=7) != calls(120, seed=8)


def test_every_call_has_its_own_id_in_its_correlation_header() -> None:
    batch = calls(500)
    assert len({call.id for call in batch}) == 500
    assert all(dict(call.headers)["WM-QOS.CORRELATION-ID"] == call.id for call in batch)


def test_even_a_short_run_shows_every_kind() -> None:
    kinds = {call.kind for call in calls(40)}
    assert kinds >= {"json", "form", "empty", "unicode", "gzip", "large", "stream", "async"}
    assert {call.expected for call in calls(40)} == {200, 201, 204, 400, 401, 404, 500}


def test_sites_and_consumers_belong_together_and_a_missing_site_is_the_us() -> None:
    batch = calls(500)
    assert Counter(call.country for call in batch).keys() == {"US", "CA", "MX"}
    without = [call for call in batch if call.site is None]
    assert without
    assert {call.country for call in without} == {"US"}
    for call in batch:
        headers = dict(call.headers)
        assert headers["WM-CONSUMER.ID"] == call.consumer == CONSUMERS[call.country]
        assert headers.get("WM-SITE-ID") == call.site
        assert call.site in (None, SITES[call.country])


def test_bodies_are_what_their_kind_says() -> None:
    batch = calls(200)
    large = next(call for call in batch if call.kind == "large")
    assert 280_000 < len(large.body) < 320_000
    packed = next(call for call in batch if call.kind == "gzip")
    assert json.loads(gzip.decompress(packed.body))["lines"]
    text = next(call for call in batch if call.kind == "unicode")
    assert not text.body.isascii()
    assert any(not call.body for call in batch if call.kind == "empty")


def test_every_secret_is_planted() -> None:
    sent = "\n".join(
        f"{unquote(call.path)}\n{call.headers}\n{unquote(call.body.decode('latin-1'))}"
        for call in calls(60)
    )
    for name, secret in SECRETS.items():
        assert secret in sent, name


def test_the_service_answers_each_as_expected_and_always_the_same(plain_port: int) -> None:
    batch = calls(100)
    seen: list[Answer] = []
    first = send(batch, "127.0.0.1", plain_port, on_answer=seen.append)
    assert list(unexpected(first)) == []
    assert [answer.call for answer in first] == batch
    assert len(seen) == len(batch)

    again = send(batch, "127.0.0.1", plain_port, threads=1)
    assert [(a.status, a.body) for a in first] == [(a.status, a.body) for a in again]


def test_a_call_that_nobody_answers_is_named() -> None:
    from .conftest import free_port

    batch = calls(3)
    answers = send(batch, "127.0.0.1", free_port(), threads=2)
    assert [answer.status for answer in answers] == [0, 0, 0]
    assert "ConnectionRefusedError" in next(unexpected(answers))
