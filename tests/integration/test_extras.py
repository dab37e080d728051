"""Each role runs with what its own extra installs, in an environment that has nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".*", "var", "build", "*.egg-info", "__pycache__", "tests")

PUBLISHER = [
    ["manage.py", "check"],
    ["manage.py", "migrate", "--verbosity", "0"],
    ["manage.py", "audit_topics", "--create"],
    ["-m", "gunicorn", "-c", "python:audit_publisher.gunicorn", "--check-config"],
]
SINK = [
    ["manage.py", "check"],
    ["manage.py", "migrate", "--verbosity", "0"],
    ["manage.py", "audit_sink_run"],
    ["manage.py", "audit_query", "SELECT count(*) AS calls FROM audit_logs"],
]


@pytest.mark.parametrize(("extra", "commands"), [("publisher", PUBLISHER), ("sink", SINK)])
def test_a_role_runs_with_its_own_extra(
    extra: str, commands: list[list[str]], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(REPOSITORY, source, ignore=_LEFT_OUT)
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AUDIT_", "DJANGO_", "PYTHON"))
    } | {"AUDIT_DATA_DIR": str(tmp_path / "data")}

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [python, *arguments],
            cwd=source,
            env=environ,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    constraints = tmp_path / "constraints.txt"
    constraints.write_text(_pinned())
    run("-m", "pip", "install", "--quiet", "--constraint", str(constraints), f".[{extra}]")
    for command in commands:
        run(*command)


def _pinned() -> str:
    """The versions of this environment, so that the test is about extras and not about news."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--exclude-editable"],
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line for line in done.stdout.splitlines() if "==" in line)
