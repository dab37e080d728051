"""How a check is registered: it runs for audited services alone, and never raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, register
from django.utils.module_loading import import_string

from ..conf import conf
from .catalogue import APP, found

logger = logging.getLogger(__name__)

MIDDLEWARE = "audit_logging.middleware.AuditMiddleware"

Check = Callable[..., list[CheckMessage]]


def check(*, deploy: bool = False, unaudited: bool = False) -> Callable[[Callable], Check]:
    """Register a generator of messages as a system check.

    :param deploy: it asks the disk or the network: run it with ``check --deploy`` alone.
    :param unaudited: also where the options are wrong, or nothing is audited.
    """

    def decorate(function: Callable[[], Iterator[CheckMessage]]) -> Check:
        @wraps(function)
        def run(**kwargs: Any) -> list[CheckMessage]:
            try:
                if not unaudited and (conf.problems() or not conf.ENABLED or not positions()):
                    return []
                return list(function())
            except Exception as error:
                logger.debug("%s failed", function.__name__, exc_info=True)
                what = f"{function.__name__} failed: {type(error).__name__}: {error}"
                return [found("W022", what)]

        # Django looks for **kwargs in the signature of what is wrapped.
        del run.__wrapped__
        register(APP, deploy=deploy)(run)
        return run

    return decorate


def middleware() -> list[str]:
    """The service's MIDDLEWARE, whatever was put there."""
    return [str(name) for name in getattr(settings, "MIDDLEWARE", None) or ()]


def positions() -> list[int]:
    """Where the audit middleware, or a subclass of it, stands in MIDDLEWARE."""
    names = middleware()
    exact = [index for index, name in enumerate(names) if name == MIDDLEWARE]
    return exact or [index for index, name in enumerate(names) if _is_ours(name)]


def _is_ours(name: str) -> bool:
    if name.startswith("django."):
        return False
    try:
        from ..middleware import AuditMiddleware

        found_class = import_string(name)
        return isinstance(found_class, type) and issubclass(found_class, AuditMiddleware)
    except Exception:  # noqa: BLE001 - not ours to report
        return False


def app_installed(name: str = APP) -> bool:
    """Whether an app is installed."""
    return apps.is_installed(name)
