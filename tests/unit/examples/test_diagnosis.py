"""The demo goes on when the doctor finds nothing wrong, and ends with what it found otherwise."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.demo.diagnosis import diagnosis
from examples.demo.processes import DemoError, Program, Supervisor


def doctor(name: str, status: int, *findings: dict[str, Any], said: str = "") -> Program:
    """A program that answers as `audit_doctor --json` does."""
    text = said or json.dumps({"ok": not status, "findings": findings}, indent=2)
    script = f"import sys; print('a line of a library'); print({text!r}); sys.exit({status})"
    return Program(name, [sys.executable, "-c", script], {})


def finding(level: str, group: str = "topics") -> dict[str, Any]:
    return {"group": group, "level": level, "message": f"{group} are {level}.", "cure": "Do so."}


def ask(tmp_path: Path, *doctors: Program) -> str:
    with Supervisor(tmp_path) as supervisor:
        return diagnosis(supervisor, doctors, 60)


def test_nothing_is_wrong(tmp_path: Path) -> None:
    said = ask(
        tmp_path,
        doctor("one", 0, finding("ok"), finding("warning", "keys")),
        doctor("two", 0, finding("ok", "keys")),
    )
    assert said == "everything is configured right: 2 examinations (topics, keys)"


def test_a_doctor_that_is_done_is_forgotten(tmp_path: Path) -> None:
    """Its process group's number may be given to somebody else, whom nobody may stop."""
    told: list[dict[int, str]] = []
    with Supervisor(tmp_path, on_change=told.append) as supervisor:
        diagnosis(supervisor, [doctor("one", 0, finding("ok"))], 60)
        assert [list(groups.values()) for groups in told] == [["one"], []]


def test_what_is_wrong_is_told_with_its_cure_from_every_doctor(tmp_path: Path) -> None:
    with pytest.raises(DemoError) as error:
        ask(
            tmp_path,
            doctor("one", 1, finding("FAIL"), finding("ok")),
            doctor("two", 1, finding("FAIL", "keys")),
        )
    assert "topics: topics are FAIL. Do so." in str(error.value)
    assert "keys: keys are FAIL. Do so." in str(error.value)
    assert "ok" not in str(error.value)


def test_a_doctor_that_comes_to_no_answer_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="no module named nonsense"):
        ask(tmp_path, doctor("one", 1, said="no module named nonsense"))
