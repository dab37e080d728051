"""The example service as its own gunicorn process, as every caller meets it."""

from __future__ import annotations

import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.demo.processes import Program, Supervisor, clean_environ

ROOT = Path(__file__).resolve().parents[3]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    """Stops all that the tests of this folder started."""
    with Supervisor(tmp_path_factory.mktemp("logs")) as supervisor:
        yield supervisor


@pytest.fixture(scope="session")
def start_inventory_api(supervisor: Supervisor) -> Callable[..., int]:
    """Start the example service with some environment; return its port once it answers."""

    def start(**environ: str) -> int:
        port = free_port()
        program = Program(
            f"inventory-{port}",
            [
                *(sys.executable, "-m", "gunicorn", "--chdir", str(ROOT)),
                *("-c", str(ROOT / "examples/inventory_api/gunicorn.conf.py")),
                "examples.inventory_api.wsgi",
            ],
            clean_environ(environ | {"INVENTORY_BIND": f"127.0.0.1:{port}"}),
            lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200,
        )
        supervisor.start(program)
        supervisor.wait_ready(30, on_ready=lambda name: None)
        return port

    return start


@pytest.fixture(scope="session")
def plain_port(start_inventory_api: Callable[..., int]) -> int:
    """The example service without the audit."""
    return start_inventory_api(INVENTORY_AUDIT="off")
