"""How metrics are read: by a view, over a port, of one process and of many."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from django.test import Client, RequestFactory
from django.urls import path
from prometheus_client.parser import text_string_to_metric_families

from audit_logging import metrics, monitoring
from audit_logging.metric_files import Counts, Files
from config import docs
from tests.support import fork

urlpatterns = [path("metrics", monitoring.metrics_view)]

REPOSITORY = Path(__file__).resolve().parents[3]

PREAMBLE = """
import os, sys, signal
{block}
from django.conf import settings
settings.configure(AUDIT_LOGGING={{"SERVICE_NAME": "shop"}}, DEFAULT_CHARSET="utf-8")
from audit_logging import metrics, monitoring

def child(work):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            metrics.export()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(reader, 1) == b"x"
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def work():
    metrics.captured.inc()
    metrics.rejected.inc(3, reason='a "b" \\\\ c')
    metrics.buffer_depth.set(5)
    metrics.buffer_fill.set(0.5)
    metrics.spool_bytes.set(1000, spool="capture")
    metrics.added_seconds.observe(0.0001)
"""
WITHOUT = "sys.modules['prometheus_client'] = None"


def run(program: str, *, with_client: bool = True, folder: Path | None = None, **more: str) -> str:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AUDIT_", "DJANGO_", "PROMETHEUS"))
    }
    environ |= {"PYTHONPATH": str(REPOSITORY)} | more
    if folder is not None:
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    text = PREAMBLE.format(block="" if with_client else WITHOUT) + program
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True, text=True, env=environ, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(page: str) -> dict[Any, float]:
    """Every sample of a page, as Prometheus itself would read it."""
    found = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        for sample in family.samples:
            found[(sample.name, *sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture
def client(settings: Any) -> Client:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = []
    return Client()


# -- the view ----------------------------------------------------------------------------------


def test_the_view_shows_ours_and_the_services_own(client: Client) -> None:
    prometheus_client.Counter("shop_orders_total", "The service's own.").inc(7)
    metrics.skipped.inc(reason="flag")
    answer = client.get("/metrics")
    found = samples(answer.content.decode())
    assert answer["Content-Type"].startswith("text/plain")
    assert found[("shop_orders_total",)] == 7
    assert found[("audit_log_skipped_total", ("reason", "flag"))] >= 1


def test_it_is_there_to_be_read_by_whoever_it_is_mounted_for(client: Client, settings: Any) -> None:
    assert client.post("/metrics").status_code == 405
    assert client.head("/metrics").status_code == 200
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    assert client.get("/metrics").status_code == 200


def test_scrapes_are_not_audited_by_default(
    audited: Any, events: list[Any], counted: Callable[..., float]
) -> None:
    audited.ROOT_URLCONF = __name__
    assert Client().get("/metrics").status_code == 200
    assert events == []
    assert counted(metrics.skipped, reason="excluded") == 1


def test_every_metric_is_on_the_page_that_needs_no_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "prometheus_client", None)
    metrics.rejected.inc(3, reason='a "b" \\ c\nd')
    metrics.added_seconds.observe(0.0001)
    answer = monitoring.metrics_view(RequestFactory().get("/metrics"))
    page = answer.content.decode()
    assert answer["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    for metric in metrics.METRICS:
        assert f"# TYPE {metric.name} {monitoring.kind_of(metric)}\n" in page
    found = samples(page)
    assert found[("audit_log_rejected_total", ("reason", 'a "b" \\ c\nd'))] == 3
    name = "audit_log_added_seconds"
    assert found[(f"{name}_count",)] == found[(f"{name}_bucket", ("le", "+Inf"))] >= 1
    assert found[(f"{name}_bucket", ("le", "5e-06"))] < found[(f"{name}_count",)]


def test_both_pages_say_the_same() -> None:
    """One process, with and without the package."""
    program = "work()\nprint(monitoring.exposition()[0].decode())"
    ours = samples(run(program, with_client=False))
    theirs = samples(run(program))
    assert ours == {name: theirs[name] for name in ours}
    assert ours[("audit_log_captured_total",)] == 1


# -- several processes -------------------------------------------------------------------------

SEVERAL = """
work()
pids = [child(work), child(work)]
metrics.export()
print(monitoring.exposition()[0].decode())
end(pids.pop())
print("# ----")
print(monitoring.exposition()[0].decode())
end(pids.pop())
"""


@pytest.mark.parametrize("with_client", [True, False])
def test_processes_count_together(tmp_path: Path, with_client: bool) -> None:
    page, after = run(SEVERAL, with_client=with_client, folder=tmp_path).split("# ----")
    found = samples(page)
    assert found[("audit_log_captured_total",)] == 3
    assert found[("audit_log_rejected_total", ("reason", 'a "b" \\ c'))] == 9
    assert found[("audit_log_buffer_events",)] == 15
    assert found[("audit_log_buffer_fill_ratio",)] == 0.5
    assert found[("audit_log_spool_bytes", ("spool", "capture"))] == 1000
    assert found[("audit_log_added_seconds_count",)] == 3
    if not with_client:
        # Its gauges ended with it; what it counted, and what it measured of the host, did not.
        found = samples(after)
        assert found[("audit_log_captured_total",)] == 3
        assert found[("audit_log_buffer_events",)] == 10
        assert found[("audit_log_spool_bytes", ("spool", "capture"))] == 1000


PORT = """
from urllib.request import urlopen
from pathlib import Path

server = monitoring.start(0)
folder, = Path(os.environ["TMPDIR"]).glob("audit-metrics-*")
assert folder.stat().st_mode & 0o777 == 0o700
def page():
    return urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=20).read().decode()

metrics.delivered.inc(status="published")
pids = [child(work), child(work), child(work)]
print(page())
for pid in pids:
    end(pid)
print("# ----")
print(page())
left = list(folder.glob("*.json"))
assert len(left) == 2, left  # this process, and those that are gone
assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)
pids = [child(work)]
print("# ----")
print(page())
end(pids.pop())
"""


@pytest.mark.parametrize("with_client", [True, False])
def test_a_worker_serves_what_its_children_count(tmp_path: Path, with_client: bool) -> None:
    output = run(PORT, with_client=with_client, TMPDIR=str(tmp_path))
    pages = [samples(page) for page in output.split("# ----")]
    assert [page[("audit_log_captured_total",)] for page in pages] == [3, 3, 4]
    assert [page[("audit_log_added_seconds_count",)] for page in pages] == [3, 3, 4]
    assert [page.get(("audit_log_buffer_events",)) for page in pages] == [15, None, 5]
    for page in pages:
        assert page[("audit_log_delivered_total", ("status", "published"))] == 1
        assert page[("audit_log_spool_bytes", ("spool", "capture"))] == 1000
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_worker_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = "monitoring.start(0)\nos.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(AssertionError):
        run(killed, TMPDIR=str(tmp_path))
    (left,) = tmp_path.iterdir()
    own = tmp_path / left.name.replace(left.name.split("-")[-2], str(os.getpid()))
    own.mkdir()  # of a process that runs
    run("monitoring.start(0)", TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == [own]


def test_a_folder_that_the_operator_named_is_used(tmp_path: Path) -> None:
    program = """
from urllib.request import urlopen
server = monitoring.start(0)
pids = [child(work)]
print(urlopen(f"http://127.0.0.1:{server.port}/", timeout=20).read().decode())
end(pids.pop())
"""
    found = samples(run(program, folder=tmp_path))
    assert found[("audit_log_captured_total",)] == 1
    assert list(tmp_path.glob("counter_*.db"))


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
server = monitoring.start(0)
try:
    monitoring.start(server.port)
except OSError:
    print("taken")
print(len(os.listdir(os.environ["TMPDIR"])))
"""
    assert run(program, TMPDIR=str(tmp_path)).split() == ["taken", "1"]


def test_the_port_is_free_again_when_children_outlive_their_parent(tmp_path: Path) -> None:
    program = """
server = monitoring.start(0)
pid = child(work)
server.close()
print(monitoring.start(server.port).port == server.port)
end(pid)
"""
    assert run(program, TMPDIR=str(tmp_path)).strip() == "True"


# -- files -------------------------------------------------------------------------------------


def test_damaged_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.take(metrics.captured, (), 2.0)
    files.write()
    for index, text in enumerate(["", "[]", '{"counters": 3}', '{"counters": {"a": [[]]}}']):
        (tmp_path / f"{os.getpid()}-{index}.audit-metrics.json").write_text(text)
    (tmp_path / "counter_1.db").write_bytes(b"\0")
    assert files.read(metrics.METRICS).counters == {"audit_log_captured_total": {(): 2.0}}


@pytest.mark.parametrize("stopped_after", range(3))
def test_whoever_is_killed_while_it_tidies_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    for _ in range(2):
        pid = fork()
        if pid == 0:
            status = 1
            try:
                files = Files(tmp_path)
                files.take(metrics.captured, (), 3.0)
                files.write()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    name = metrics.captured.name

    def counted(*, tidy: bool) -> float:
        return Files(tmp_path).read(metrics.METRICS, tidy=tidy).counters[name][()]

    assert counted(tidy=False) == 6
    unlink, left = Path.unlink, [stopped_after]

    def killed(path: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        try:
            counted(tidy=True)
        except KeyboardInterrupt:
            assert stopped_after < 2
    assert len(list(tmp_path.iterdir())) == 3 - stopped_after
    assert [counted(tidy=tidy) for tidy in (False, True, False)] == [6, 6, 6]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fails_loses_no_count(tmp_path: Path) -> None:
    files = Files(tmp_path / "later")
    files.take(metrics.captured, (), 2.0)
    files.write()
    (tmp_path / "later").mkdir()
    files.write()
    assert files.read(metrics.METRICS).counters == {"audit_log_captured_total": {(): 2.0}}


def test_the_latest_measure_of_the_host_counts(tmp_path: Path) -> None:
    now = [100.0]
    one, two = (Files(tmp_path, lambda: now[0]) for _ in range(2))
    for files, value in ((one, 7.0), (two, 3.0)):
        files.take(metrics.spool_bytes, ("capture",), value)
        files.write()
        now[0] += 1
    gauges = one.read(metrics.METRICS).gauges["audit_log_spool_bytes"]
    assert gauges == {("capture",): (3.0, 101.0)}


def test_counts_are_read_as_they_were_written() -> None:
    counts = Counts()
    counts.counters["a"] = {("x", "y"): 1.0, (): 2.0}
    counts.gauges["b"] = {("x",): (3.0, 4.0)}
    counts.histograms["c"] = ([1, 2], 0.5)
    assert vars(Counts.load(counts.dump())) == vars(counts)


# -- documentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["audit_logging", "audit_publisher", "audit_sink"])
def test_every_metric_is_on_the_page_with_what_to_do(tier: str) -> None:
    page = (docs.DOCS / "metrics.md").read_text()
    found = docs.metrics_of(tier)
    assert len(found) > 10
    for name, _, _, help_text in found:
        assert f"| `{name}" in page, "Run: make docs"
        assert help_text.endswith((".", ")"))
        assert len(help_text) > 30


def test_no_name_is_used_twice() -> None:
    names = [
        name
        for tier in ("audit_logging", "audit_publisher", "audit_sink")
        for name, *_ in docs.metrics_of(tier)
    ]
    assert len(set(names)) == len(names)
