"""Sends calls over kept-alive connections, each exactly once, and returns every answer whole."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .traffic import Call


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one call; `status` 0 and `error` when nothing did.

    :ivar sent_at: epoch seconds.
    :ivar seconds: until the last byte.
    """

    call: Call
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    sent_at: float = 0.0
    seconds: float = 0.0
    error: str = ""


def send(
    batch: Sequence[Call],
    host: str,
    port: int,
    *,
    threads: int = 4,
    timeout: float = 30.0,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Send every call once, over `threads` kept-alive connections; return answers in call order.

    A call is never repeated, so that what was sent is known exactly; one that failed on the way
    has `status` 0 and an `error`.

    :param timeout: seconds for each answer.
    :param on_answer: called from the sending threads, once a call.
    """
    answers: list[Answer | None] = [None] * len(batch)
    todo = iter(range(len(batch)))
    lock = threading.Lock()

    def work() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=timeout)
        try:
            while True:
                with lock:
                    index = next(todo, None)
                if index is None:
                    return
                answers[index] = answer = _send_one(connection, batch[index])
                on_answer(answer)
        finally:
            connection.close()

    workers = [threading.Thread(target=work, name=f"sender-{n}") for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [answer for answer in answers if answer is not None]


def _send_one(connection: http.client.HTTPConnection, call: Call) -> Answer:
    started, clock = time.time(), time.perf_counter()
    try:
        connection.request(
            call.method, call.path, body=call.body or None, headers=dict(call.headers)
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        reason = f"{type(error).__name__}: {error}"
        return Answer(call, 0, sent_at=started, error=reason)
    return Answer(
        call,
        response.status,
        tuple(response.getheaders()),
        body,
        started,
        time.perf_counter() - clock,
    )


def unexpected(answers: Sequence[Answer]) -> Iterator[str]:
    """Yield a sentence for each answer that is not what its call expects."""
    for answer in answers:
        call = answer.call
        if answer.status != call.expected:
            got = answer.error or f"status {answer.status}"
            yield f"{call.method} {call.path} should answer {call.expected}; it gave {got}"
