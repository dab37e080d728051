"""Metrics of several processes, which prometheus_client keeps in files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys, threading
from pathlib import Path
from django.conf import settings
settings.configure(AUDIT_LOGGING={"SERVICE_NAME": "shop"})
from audit_logging import metrics
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])

def work(child):
    # Whoever exports is at its files and does not come back: a request thread must not notice.
    with metrics._export_lock:
        requests = threading.Thread(target=lambda: [
            metrics.captured.inc(), metrics.skipped.inc(reason="flag"),
            metrics.rejected.inc(reason="buffer_full")])
        requests.start()
        requests.join(20)
        assert not requests.is_alive(), "a request thread waited for the metrics' files"
        if child:
            assert not list(folder.glob(f"*_{os.getpid()}.db")), "it opened files"
    metrics.spool_bytes.set(1000, spool="delivery")
    metrics.buffer_depth.set(5)

work(child=False)
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(child=True)
            metrics.export()
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    children.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert children == [0, 0], children
metrics.export()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_each_process_counts_once_and_no_request_thread_touches_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    folder.mkdir()
    environ = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PROMETHEUS_MULTIPROC_DIR": str(folder),
    }
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = done.stdout.splitlines()
    assert "audit_log_captured_total 3.0" in page
    assert 'audit_log_rejected_total{reason="buffer_full"} 3.0' in page
    # One file that three processes measured; three buffers that are each a process's own.
    assert 'audit_log_spool_bytes{spool="delivery"} 1000.0' in page
    assert "audit_log_buffer_events 15.0" in page


STUCK = """
import os, sys, threading
from django.conf import settings
settings.configure(AUDIT_LOGGING={"SERVICE_NAME": "shop"})
from audit_logging import metrics
import prometheus_client
from prometheus_client.mmap_dict import MmapedDict

host = prometheus_client.Counter("host", "Of the service itself.")
entered, leave = threading.Event(), threading.Event()
write = MmapedDict.write_value
def stuck(self, *args):
    entered.set()
    leave.wait(60)
    write(self, *args)

metrics._exporter.stop(0)
metrics.rejected.inc(reason="buffer_full")
MmapedDict.write_value = stuck
exporter = threading.Thread(target=metrics.export)
exporter.start()
assert entered.wait(20)
pid = os.fork()
if pid == 0:
    MmapedDict.write_value = write
    def work():
        host.inc()
        metrics.rejected.inc(reason="buffer_full")
        metrics.export()
        os._exit(0)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    os._exit(7)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
leave.set()
exporter.join()
assert not metrics._export_lock.locked()
sys.exit(code)
"""


def test_a_child_of_a_fork_during_a_slow_write_counts_all_the_same(tmp_path: Path) -> None:
    environ = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run([sys.executable, "-c", STUCK], env=environ, timeout=120, check=False)
    assert done.returncode == 0, "the child waits for a lock that its parent held"
    files = [path.read_bytes() for path in tmp_path.glob("counter_*.db")]
    assert sum(b"buffer_full" in file for file in files) == 2


def test_what_is_counted_at_the_very_end_is_exported(tmp_path: Path) -> None:
    program = (
        "from django.conf import settings; settings.configure()\n"
        "from audit_logging import metrics; metrics.rejected.inc(reason='shutdown')"
    )
    environ = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
    }
    environ.pop("DJANGO_SETTINGS_MODULE", None)
    subprocess.run([sys.executable, "-c", program], env=environ, timeout=60, check=True)
    (file,) = tmp_path.glob("counter_*.db")
    assert b"shutdown" in file.read_bytes()
