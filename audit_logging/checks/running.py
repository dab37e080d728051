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


def threads_never_run() -> bool:
    """Whether this process is of a uWSGI that keeps Python's threads from running."""
    # In its processes alone; elsewhere a package of that name says nothing.
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        try:
            import uwsgi  # type: ignore[no-redef]
        except ImportError:
            return False
    options = getattr(uwsgi, "opt", None)
    if not isinstance(options, dict):
        return False
    has_threads = getattr(uwsgi, "has_threads", None)
    if has_threads is not None:
        return not has_threads
    return not any(_is_on(options, name) for name in ("enable-threads", "threads", "gevent"))


def _is_on(options: dict[Any, Any], name: str) -> bool:
    value = options.get(name, options.get(name.encode()))
    if isinstance(value, list):
        value = value[-1] if value else None
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value or "")
    return text.strip().lower() not in ("", "0", "false", "no", "off", "none")


@check()
def check_threads() -> Iterator[CheckMessage]:
    """E016: a server that runs no thread of ours."""
    yield from _threads()


def _threads() -> Iterator[CheckMessage]:
    if threads_never_run():
        yield found("E016", "uWSGI runs without enable-threads.")


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
    messages = list(_threads())
    if not app_installed():
        messages += [one for one in check_middleware() if one.id == "audit_logging.E005"]
    for message in messages:
        logger.error("%s (%s) %s", message.msg, message.id, message.hint)
