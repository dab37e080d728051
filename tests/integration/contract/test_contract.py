"""The publisher keeps its contract, whatever it is sent; `make contract` sends far more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.contract.run import run

pytestmark = [pytest.mark.slow]


def test_what_the_document_says_is_what_happens(tmp_path: Path) -> None:
    outcome = run(tmp_path, examples=12, seed=1)
    assert outcome.passed, outcome.report[-20_000:]
    assert outcome.requests > 500
    assert max(outcome.statuses) < 500
    # It got past the door, and at the door.
    assert {200, 204, 304, 400, 401, 405, 415, 422} <= set(outcome.statuses)
