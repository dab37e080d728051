"""A batch survives its way as it is, and a damaged one says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_logging import batch
from audit_logging.exceptions import BatchUnreadable

#: What JSON without ASCII escapes may hold on one line.
LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")), min_size=1
)


@given(LINES)
def test_lines_come_back_as_they_were(lines: list[str]) -> None:
    assert batch.unpack(batch.pack(lines)) == lines


@given(LINES, st.data())
def test_a_batch_cut_anywhere_is_refused(lines: list[str], data: st.DataObject) -> None:
    packed = batch.pack(lines)
    cut = data.draw(st.integers(0, len(packed) - 1))

    with pytest.raises(BatchUnreadable):
        batch.unpack(packed[:cut])


def test_a_batch_that_grows_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_UNPACKED", 1000)

    with pytest.raises(BatchUnreadable):
        batch.unpack(batch.pack(["x" * 1001]))
