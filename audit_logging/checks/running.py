"""What only the running server can tell."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage
from django.utils.module_loading import import_string

from .. import asgi
from .catalogue import found
from .configuration import check_middleware
from .registering import app_installed, check

logger = logging.getLogger("audit_logging")

_reported = False
#: Whether this process's middleware is asynchronous.
serves_asgi = False


class _UWSGI:
    """The uWSGI that this process belongs to."""

    def __init__(self, module: Any) -> None:
        self._options: dict[Any, Any] = module.opt
        self._has_threads = getattr(module, "has_threads", None)

    def runs_threads(self) -> bool:
        """Whether Python's threads run in it."""
        if self._has_threads is not None:
            return bool(self._has_threads)
        return any(self._is_on(name) for name in ("enable-threads", "threads", "gevent"))

    def ends_in_order(self) -> bool:
        """Whether a stopped worker runs Python's exit handlers, busy or not."""
        # plugins/python/python_plugin.c, uwsgi_python_atexit: none for a worker in a request.
        return any("gracefully_kill_them_all" in text for text in self._given("hook-master-start"))

    def skips(self) -> str | None:
        """The option that keeps every worker from running them, if one is on."""
        names = ("skip-atexit", "skip-atexit-teardown")
        return next((name for name in names if self._is_on(name)), None)

    def _given(self, name: str) -> list[str]:
        value = self._options.get(name, self._options.get(name.encode()))
        return [
            one.decode("latin-1") if isinstance(one, bytes) else str(one or "")
            for one in (value if isinstance(value, list) else [value])
        ]

    def _is_on(self, name: str) -> bool:
        given = self._given(name)
        off = ("", "0", "false", "no", "off", "none")
        return bool(given) and given[-1].strip().lower() not in off


def _uwsgi() -> _UWSGI | None:
    # In its processes alone; elsewhere a package of that name says nothing.
    module = sys.modules.get("uwsgi")
    if module is None:
        try:
            import uwsgi as module  # type: ignore[no-redef]
        except ImportError:
            return None
    return _UWSGI(module) if isinstance(getattr(module, "opt", None), dict) else None


@check()
def check_uwsgi() -> Iterator[CheckMessage]:
    """E016, W028: a server that runs no thread of ours, or ends without a word."""
    yield from _under_uwsgi()


def _under_uwsgi() -> Iterator[CheckMessage]:
    uwsgi = _uwsgi()
    if uwsgi is None:
        return
    if not uwsgi.runs_threads():
        yield found("E016", "uWSGI runs without enable-threads.")
    skips = uwsgi.skips()
    if skips is not None:
        yield found("W028", f"uWSGI runs with {skips}.")
    elif not uwsgi.ends_in_order():
        yield found("W028", "uWSGI stops workers in the middle of requests.")


@check(deploy=True)
def check_asgi() -> Iterator[CheckMessage]:
    """W027: a graceful stop that loses events."""
    name = getattr(settings, "ASGI_APPLICATION", None)
    if name and find_spec("uvicorn") is not None:
        # To import it is what a server does.
        import_string(name)
        yield from _unwrapped()


def _unwrapped() -> Iterator[CheckMessage]:
    if not asgi.wrapped:
        yield found("W027", "The ASGI application is not wrapped by audit_logging.asgi.audited.")


def serving_asgi() -> None:
    """Take down that this process serves through ASGI."""
    global serves_asgi
    serves_asgi = True


def report_serving() -> None:
    """Log, once in a process that has served a request, what its start could not tell."""
    # An application is wrapped after its middleware is made.
    if serves_asgi and "uvicorn" in sys.modules:
        for message in _unwrapped():
            logger.warning("%s (%s) %s", message.msg, message.id, message.hint)


def report() -> None:
    """Log, once in a process, what ``manage.py check`` has no way to find."""
    global _reported
    if _reported:
        return
    _reported = True
    # Not the checks themselves, which may import all middleware: apps are still being made ready.
    messages = list(_under_uwsgi())
    if not app_installed():
        messages += [one for one in check_middleware() if one.id == "audit_logging.E005"]
    for message in messages:
        logger.log(message.level, "%s (%s) %s", message.msg, message.id, message.hint)
