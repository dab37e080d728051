"""`python -m benchmarks.capture_latency`: what the middleware adds to a request, paired.

One process, no network: the same view is called through Django's own handler with and without the
middleware, in turn, so that a machine that slows down slows both. Everything behind the middleware
is real: redaction on the background thread, and the embedded broker on disk.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from typing import Any

BODY = json.dumps(
    {"store": 4108, "note": "x" * 1900, "lines": [{"item": "00068700011825", "quantity": 3}]}
).encode()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="counted requests of each")
    parser.add_argument(
        "--pause", type=float, default=0.002, help="seconds between pairs, as callers pause"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _configure(folder)
        bare, audited = _handler([]), _handler(["audit_logging.middleware.AuditMiddleware"])
        for handler in (bare, audited):
            for _ in range(200):
                _call(handler)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(arguments.requests):
            # Which goes first changes with each pair.
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(_call((bare, audited)[which]))
            time.sleep(arguments.pause)
        _print(*times)
        from audit_logging import metrics
        from audit_logging.transport import get_transport

        get_transport().flush(30)
        print(
            f"captured {metrics.captured.value():.0f}, lost {metrics.rejected.value():.0f}, "
            f"spooled {metrics.spooled.value():.0f}"
        )
        get_transport().close()


def _configure(folder: str) -> None:
    from django.conf import settings

    os.environ["AUDIT_LOGGING_DATA_DIR"] = folder
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="benchmark",  # noqa: S106
        INSTALLED_APPS=["audit_logging"],
        AUDIT_LOGGING={"SERVICE_NAME": "benchmark", "FLAGS_SOURCE": "settings"},
    )
    import django

    django.setup()


def _handler(middleware: list[str]) -> Any:
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import override_settings

    with override_settings(MIDDLEWARE=middleware):
        return WSGIHandler()


def _call(handler: Any) -> float:
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/iac/v1/inventory",
        "QUERY_STRING": "",
        "SERVER_NAME": "benchmark",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(BODY),
        "wsgi.errors": io.StringIO(),
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(BODY)),
        "HTTP_WM_CONSUMER.ID": "benchmark",
    }
    started = time.perf_counter()
    response = handler(environ, lambda status, headers: None)
    b"".join(response)
    response.close()
    return time.perf_counter() - started


def _print(bare: list[float], audited: list[float]) -> None:
    print(f"{len(bare):,} pairs, {len(BODY):,} bytes in and out; microseconds")
    print(f"{'':<10}{'median':>10}{'p90':>10}{'p99':>10}")
    rows = {"bare": bare, "audited": audited}
    marks = {name: _marks(values) for name, values in rows.items()}
    for name, values in marks.items():
        print(f"{name:<10}" + "".join(f"{value * 1e6:>10.1f}" for value in values))
    added = [after - before for after, before in zip(marks["audited"], marks["bare"], strict=True)]
    print(f"{'added':<10}" + "".join(f"{value * 1e6:>+10.1f}" for value in added))


def _marks(values: list[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(values, n=100)
    return statistics.median(values), cuts[89], cuts[98]


def _view(request: Any) -> Any:
    from django.http import HttpResponse

    return HttpResponse(request.body, content_type="application/json")


def __getattr__(name: str) -> Any:
    # The URL configuration, which needs settings first.
    if name == "urlpatterns":
        from django.urls import path

        return [path("iac/v1/inventory", _view)]
    raise AttributeError(name)


if __name__ == "__main__":
    main()
