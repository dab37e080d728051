"""How metrics are read: a view for any audited service, and a port for its workers.

``path("metrics", audit_logging.monitoring.metrics_view)`` serves them in Prometheus's text format,
with the service's own where it has ``prometheus_client``, and without that package too.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from . import metrics
from .histogram import bound_text
from .metric_files import Counts, Files, alive

try:
    from django.contrib.auth.decorators import login_not_required
except ImportError:  # Django before 5.1 has nobody who would ask for a login
    login_not_required = lambda view: view  # noqa: E731

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds that one who asks on the workers' port may take.
_TIMEOUT = 10.0
_PREFIX = "audit-metrics"


@login_not_required
@require_safe
def metrics_view(request: HttpRequest) -> HttpResponse:
    """The metrics of this process; of all processes, where PROMETHEUS_MULTIPROC_DIR is set.

    They tell nothing of what requests hold, but how busy a service is: mount it where the outside
    does not reach, or wrap it.
    """
    page, content_type = exposition()
    return HttpResponse(page, content_type=content_type)


def exposition() -> tuple[bytes, str]:
    """Return the metrics as a page, and its content type."""
    files = metrics.files()
    if files is not None:
        return of_files(files).encode(), CONTENT_TYPE
    if metrics.prometheus_client is None:
        return of_process().encode(), CONTENT_TYPE
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(_Derived(registry)), CONTENT_TYPE_LATEST


#: What is made of other metrics whenever they are read.
_derived: dict[str, Callable[[list[Any]], Iterable[Any]]] = {}


def derive(make: Callable[[list[Any]], Iterable[Any]]) -> None:
    """Add metrics that are made of the others, of what was read at the same moment.

    :param make: returns further metric families of ``prometheus_client`` for those it is given.
    """
    _derived[f"{make.__module__}.{make.__qualname__}"] = make


class _Derived:
    """A registry with what is derived from it."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        found = list(self._registry.collect())
        yield from found
        for make in _derived.values():
            yield from make(found)


# -- without prometheus_client -----------------------------------------------------------------


def of_process() -> str:
    """The page of this process's own counts."""
    return "".join(_family(metric, _own(metric)) for metric in metrics.METRICS)


def of_files(files: Files, *, tidy: bool = False) -> str:
    """The page of what all processes counted together.

    :param tidy: see :meth:`.metric_files.Files.read`.
    """
    metrics.export()
    counts = files.read(metrics.METRICS, tidy=tidy)
    return "".join(_family(metric, _counted(metric, counts)) for metric in metrics.METRICS)


Samples = Iterator[tuple[str, Mapping[str, str], float]]


def _own(metric: Any) -> Samples:
    if hasattr(metric, "bounds"):
        buckets, total = metric.read()
        return _buckets(buckets, total)
    return _values(metric, metric.values())


def _counted(metric: Any, counts: Counts) -> Samples:
    if hasattr(metric, "bounds"):
        bounds = (*metric.bounds, float("inf"))
        found, total = counts.histograms.get(metric.name, ([0] * len(bounds), 0.0))
        return _buckets(list(zip(bounds, accumulate(found), strict=False)), total)
    if hasattr(metric, "across"):
        gauges = counts.gauges.get(metric.name, {})
        return _values(metric, {key: value for key, (value, _) in gauges.items()})
    nothing: dict[tuple[str, ...], float] = {} if metric.labels else {(): 0.0}
    return _values(metric, counts.counters.get(metric.name, nothing))


def _values(metric: Any, values: Mapping[tuple[str, ...], float]) -> Samples:
    for key, value in values.items():
        yield "", dict(zip(metric.labels, key, strict=True)), value


def _buckets(buckets: list[tuple[float, int]], total: float) -> Samples:
    for bound, count in buckets:
        yield "_bucket", {"le": bound_text(bound)}, count
    yield "_sum", {}, total
    yield "_count", {}, buckets[-1][1]


def kind_of(metric: Any) -> str:
    """A metric's type as Prometheus calls it."""
    return type(metric).__name__.lower()


def _family(metric: Any, samples: Samples) -> str:
    name = metric.name
    help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind_of(metric)}"]
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{suffix}{f'{{{inside}}}' if inside else ''} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# -- a port for workers ------------------------------------------------------------------------


class MetricsServer:
    """Serves the metrics of this process, and of all that it forks, on a port.

    :ivar port: the port, also where 0 was asked for.
    :raises OSError: the port cannot be had.
    """

    def __init__(self, port: int, address: str = "") -> None:
        self._pid = os.getpid()
        self._folder = _make_folder() if not metrics._IN_FILES else None
        try:
            self._server = _Server(address, port)
        except BaseException:
            self._remove()
            raise
        if self._folder is not None:
            metrics.keep_in_files(self._folder)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="audit-metrics-port", daemon=True
        )
        self._thread.start()
        atexit.register(self._remove)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        # The port is the parent's: a child that outlives it must not keep it.
        self._server.socket.close()

    def close(self) -> None:
        """Serve no more, and remove the files."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_TIMEOUT)
        self._remove()

    def _remove(self) -> None:
        # Children run the exit hooks of their parent, too.
        if self._folder is not None and os.getpid() == self._pid:
            shutil.rmtree(self._folder, ignore_errors=True)


def start(port: int, address: str = "") -> MetricsServer:
    """Serve the metrics on `port`; for a process whose children are to be counted with it.

    Called before it forks. The processes count in a folder made for them, unless
    PROMETHEUS_MULTIPROC_DIR names one.

    :param address: where to listen; everywhere by default.
    :raises OSError: the port cannot be had.
    """
    return MetricsServer(port, address)


def _make_folder() -> Path:
    # The host's name, as hosts and containers may share the folder of temporary files.
    prefix = f"{_PREFIX}-{socket.gethostname()}-"
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}*"):
        owner = left.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not alive(int(owner)) and _ours(left):
            # Of a worker that was killed.
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-"))


def _ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return not path.is_symlink() and found.st_uid == os.geteuid()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, port: int) -> None:
        if ":" in address or (not address and _has_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__((address, port), _Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # Both families on one port.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Not HTTPServer's, which asks the name service for our name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "metrics", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    server_version = "audit"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/metrics", "/"):
            self.send_error(404)
            return
        files = metrics.files()
        if files is not None:
            page, content_type = of_files(files, tidy=True).encode(), CONTENT_TYPE
        else:
            page, content_type = exposition()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
