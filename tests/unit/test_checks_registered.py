"""The apps' system checks run in a process that imports nothing by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

_LIST = """
import django
django.setup()
from django.core.checks.registry import registry
found = {*registry.registered_checks, *registry.deployment_checks}
print(*sorted({check.__module__.split(".")[0] for check in found}))
"""


@pytest.mark.parametrize("app", ["audit_logging", "audit_publisher", "audit_sink"])
def test_an_app_registers_its_checks(app: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIST], capture_output=True, text=True, check=True, timeout=120
    )
    assert app in done.stdout.split()
