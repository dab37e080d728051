"""What a process of the project does at its start, with nothing imported by a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LIST = """
import django
django.setup()
from django.core.checks.registry import registry
found = {*registry.registered_checks, *registry.deployment_checks}
print(*sorted({check.__module__.split(".")[0] for check in found}))
"""
WRONG = {"AUDIT_PUBLISHER_DELIVERY_TIMEOUT": "abc"}


def run(arguments: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")}
    clean["DJANGO_SETTINGS_MODULE"] = "config.settings"
    return subprocess.run(
        [sys.executable, *arguments],
        env=clean | {"AUDIT_DATA_DIR": str(folder)} | environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("app", ["audit_logging", "audit_publisher", "audit_sink"])
def test_an_app_registers_its_checks(app: str, tmp_path: Path) -> None:
    assert app in run(["-c", _LIST], tmp_path).stdout.split()


@pytest.mark.parametrize("command", [["check"], ["audit_doctor", "--json"], ["migrate"]])
@pytest.mark.parametrize("wrong", [WRONG, {"AUDIT_NOSUCH": "1"}])
def test_a_wrong_setting_is_one_line(
    command: list[str], wrong: dict[str, str], tmp_path: Path
) -> None:
    done = run(["manage.py", *command], tmp_path, **wrong)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"Settings: {next(iter(wrong))}: ")
    shown = run(["manage.py", *command, "--traceback"], tmp_path, **wrong)
    assert "Traceback" in shown.stderr


def test_the_server_says_a_wrong_setting_and_ends(tmp_path: Path) -> None:
    arguments = ["-m", "gunicorn", "-c", "python:audit_publisher.gunicorn"]
    bind = f"unix:{tmp_path}/socket"
    done = run(arguments, tmp_path, **WRONG, GUNICORN_BIND=bind, GUNICORN_WORKERS="1")
    assert done.returncode != 0
    assert "Settings: AUDIT_PUBLISHER_DELIVERY_TIMEOUT: 'abc' is not a number" in done.stderr
    assert "Traceback" not in done.stderr
