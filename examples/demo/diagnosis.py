"""Is everything configured right? Asks `audit_doctor`, of each project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import DemoError, NotReady, Program, Supervisor


def diagnosis(supervisor: Supervisor, doctors: Sequence[Program], timeout: float) -> str:
    """Return a line that says how much was examined, and that nothing of it is wrong.

    :param doctors: programs that run ``audit_doctor --json``.
    :raises DemoError: with what is wrong, and the cure of each.
    """
    tasks = [supervisor.start_task(each) for each in doctors]
    found: list[dict[str, Any]] = []
    for task in tasks:
        try:
            supervisor.finish_task(task, timeout)
        except NotReady:
            raise
        except DemoError:
            findings = _findings(task.log)
            if not findings:
                # It did not come to an answer: what it said instead is the message.
                raise
        found += _findings(task.log)
    wrong = [each for each in found if each["level"] == "FAIL"]
    if wrong:
        lines = [f"{each['group']}: {each['message']} {each['cure']}" for each in wrong]
        raise DemoError("The configuration is not right:\n" + "\n".join(lines))
    fine = sum(each["level"] == "ok" for each in found)
    groups = ", ".join(dict.fromkeys(each["group"] for each in found))
    return f"everything is configured right: {fine} examinations ({groups})"


def _findings(log: Path) -> list[dict[str, Any]]:
    text = log.read_text(errors="replace")
    try:
        # Something may have been printed before.
        return list(json.loads(text[text.index("{\n") :])["findings"])
    except (ValueError, KeyError, TypeError):
        return []
