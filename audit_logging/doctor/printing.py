"""The doctor's page: grouped, aligned, as wide as the terminal and no wider."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from .examinations import Examination, Level
from .running import Report

_LEVEL = 11
_NARROW = 72
_WIDEST = 110


class Page:
    """Writes reports as they come.

    :param paint: gives a word the colour of a level; on a terminal alone.
    """

    def __init__(
        self,
        out: Any,
        examinations: Sequence[Examination],
        paint: Callable[[Level, str], str] = lambda level, text: text,
        columns: int | None = None,
    ) -> None:
        self._out: TextIO = out
        self._paint = paint
        columns = columns or shutil.get_terminal_size((100, 24)).columns
        self._columns = max(30, min(columns, _WIDEST))
        self._title = max((len(each.title) for each in examinations), default=0) + 2
        # No room for three columns: the text goes below its title.
        self._narrow = self._columns < max(_NARROW, _LEVEL + self._title + 30)
        self._group = ""

    def add(self, report: Report) -> None:
        """Write what one examination found."""
        title = report.examination.title
        for finding in report.findings:
            if report.examination.group != self._group:
                before = "\n" if self._group else ""
                self._group = report.examination.group
                self._out.write(f"{before}{self._group}\n")
            self._line(finding.level, title, finding.message, finding.id)
            if finding.cure and finding.level != "ok":
                self._text("cure: ", finding.cure)
            title = ""

    def _line(self, level: Level, title: str, message: str, check: str) -> None:
        text = f"{message} ({check})" if check else message
        head = "  " + self._paint(level, level) + " " * (_LEVEL - 2 - len(level))
        if self._narrow:
            self._out.write(f"{head}{title}".rstrip() + "\n")
            self._text("", text)
            return
        lines = self._wrapped(text)
        self._out.write(f"{head}{title:<{self._title}}{lines[0]}\n")
        for line in lines[1:]:
            self._out.write(" " * self._indent + line + "\n")

    def _text(self, start: str, text: str) -> None:
        for index, line in enumerate(self._wrapped(text, len(start))):
            before = " " * len(start) if index else start
            self._out.write(f"{' ' * self._indent}{before}{line}\n")

    @property
    def _indent(self) -> int:
        return 4 if self._narrow else _LEVEL + self._title

    def _wrapped(self, text: str, taken: int = 0) -> list[str]:
        width = max(20, self._columns - self._indent - taken)
        # A long address or path stays whole, so that it can be copied.
        return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def summary(reports: Sequence[Report], seconds: float) -> str:
    """The last line."""
    levels = [finding.level for report in reports for finding in report.findings]
    failures, warnings = levels.count("FAIL"), levels.count("warning")
    return (
        f"{levels.count('ok')} ok, {warnings} warning{'s' * (warnings != 1)}, "
        f"{failures} failure{'s' * (failures != 1)}, in {seconds:.1f} s"
    )


def document(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Every finding, for a program."""
    return [
        {
            "group": report.examination.group,
            "examination": report.examination.title,
            "level": finding.level,
            "message": finding.message,
            "cure": finding.cure,
            "check": finding.id,
            "seconds": round(report.seconds, 3),
        }
        for report in reports
        for finding in report.findings
    ]
