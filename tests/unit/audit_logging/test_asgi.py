"""The wrapper for asgi.py: the buffer is emptied when the server says goodbye."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler

from audit_logging import asgi, checks, transport
from audit_logging.asgi import audited
from audit_logging.checks import running

LIFE = ["lifespan.startup", "lifespan.shutdown"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was sent and done, in order."""
    order: list[str] = []

    class Flushed:
        def shutdown(self) -> bool:
            order.append("flushed")
            return True

    monkeypatch.setattr(transport, "get_transport", Flushed)
    return order


def live(application: Any, said: list[str]) -> None:
    coming = list(LIFE)

    async def receive() -> dict[str, Any]:
        return {"type": coming.pop(0)}

    async def send(message: dict[str, Any]) -> None:
        said.append(message["type"])

    asyncio.run(audited(application)({"type": "lifespan"}, receive, send))


GOOD = ["lifespan.startup.complete", "flushed", "lifespan.shutdown.complete"]


def test_django_is_answered_for(said: list[str]) -> None:
    live(ASGIHandler(), said)
    assert said == GOOD


def test_an_application_with_a_life_of_its_own_leads_it(said: list[str]) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        for heard in LIFE:
            assert (await receive())["type"] == heard
            await send({"type": f"{heard}.complete"})

    live(application, said)
    assert said == GOOD


def test_one_that_fails_at_its_start_fails(said: list[str]) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no cache today")

    with pytest.raises(RuntimeError, match="no cache today"):
        live(application, said)
    assert said == []


def test_requests_pass_as_they_are() -> None:
    passed: list[Any] = []

    async def application(*request: Any) -> None:
        passed.extend(request)

    request = ({"type": "http"}, object(), object())
    asyncio.run(audited(application)(*request))  # type: ignore[arg-type]
    assert passed == list(request)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_process_behind_uvicorn_says_so_when_nobody_wrapped_it(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrapped: bool,
    asynchronous: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", ModuleType("uvicorn"))
    monkeypatch.setattr(asgi, "wrapped", wrapped)
    monkeypatch.setattr(running, "serves_asgi", False)
    if asynchronous:
        checks.serving_asgi()
    checks.report_serving()
    assert ("audit_logging.W027" in caplog.text) == (asynchronous and not wrapped)


@pytest.mark.parametrize("wraps", [True, False])
def test_the_check_imports_the_application_and_looks(
    monkeypatch: pytest.MonkeyPatch, settings: Any, wraps: bool
) -> None:
    module = ModuleType("wrapped_asgi")
    monkeypatch.setitem(sys.modules, "wrapped_asgi", module)
    monkeypatch.setattr(asgi, "wrapped", False)
    monkeypatch.setattr(running, "find_spec", lambda name: name == "uvicorn")
    application = ASGIHandler()
    module.application = audited(application) if wraps else application  # type: ignore[attr-defined]
    settings.ASGI_APPLICATION = "wrapped_asgi.application"
    settings.MIDDLEWARE = [checks.MIDDLEWARE]
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop"}
    assert [one.id for one in checks.check_asgi()] == ([] if wraps else ["audit_logging.W027"])
