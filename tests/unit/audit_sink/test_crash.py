"""Killed at any named step, by the real signal's effect: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit_sink.failpoints import NAMES

from .crashing import EVENTS, PRODUCERS


def run_crashing(failpoint: str, folder: Path, **environment: str) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AUDIT_", "DJANGO_"))}
    env |= {
        "AUDIT_DATA_DIR": str(folder),
        "AUDIT_SINK_MAX_BATCH_RECORDS": "20",
        "AUDIT_LOG_LEVEL": "ERROR",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.audit_sink.crashing", failpoint],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def check(found: dict[str, Any]) -> None:
    assert found["errors"] == []
    assert found["problems"] == []
    assert found["twice"] == []
    assert found["rows"] == EVENTS * 3 // 4
    assert found["producers"] == [[30, "closed"]] * PRODUCERS
    assert found["sites"] == {"US": EVENTS // 2, "CA": EVENTS // 4}


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", NAMES)
def test_killed_and_redone(failpoint: str, tmp_path: Path) -> None:
    found = run_crashing(failpoint, tmp_path)
    check(found)
    if failpoint in ("after_claim", "after_dead_letter", "after_upload"):
        assert found["takeovers"] >= 3


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("failpoint", NAMES)
def test_killed_and_redone_on_postgresql(
    failpoint: str, tmp_path: Path, postgres_server: Any
) -> None:
    url = postgres_server.create_database(f"sink_{failpoint}")
    check(run_crashing(failpoint, tmp_path, AUDIT_DATABASE_URL=url))


@pytest.mark.slow
def test_workers_and_regions_that_race(tmp_path: Path) -> None:
    """Four workers on the same lanes, and every event in both regions: one row each."""
    check(run_crashing("race", tmp_path, **_second_region(tmp_path)))


@pytest.mark.services
@pytest.mark.slow
def test_workers_and_regions_that_race_on_postgresql(tmp_path: Path, postgres_server: Any) -> None:
    url = postgres_server.create_database("sink_race")
    check(run_crashing("race", tmp_path, AUDIT_DATABASE_URL=url, **_second_region(tmp_path)))


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["after_claim", "after_upload", "race"])
def test_killed_and_redone_with_kafka(failpoint: str, tmp_path: Path, kafka_primary: Any) -> None:
    topic = f"crash-{failpoint}"
    kafka_primary.create_topics({topic: 2, f"{topic}_DLQ": 1})
    found = run_crashing(
        failpoint,
        tmp_path,
        AUDIT_PUBLISHER_PRIMARY_URL=f"kafka://{kafka_primary.address}",
        AUDIT_PUBLISHER_DEFAULT_TOPIC=topic,
    )
    check(found)


def _second_region(folder: Path) -> dict[str, str]:
    return {"AUDIT_PUBLISHER_SECONDARY_URL": f"local://{folder}/secondary.sqlite3"}
