"""What the person in front of the demo sees: progress, then what became of the requests."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from .observe import Seen
from .prepare import shown
from .redacted import Redacted
from .sender import Answer
from .traffic import SITES, Call

#: Seconds between two lines of progress where there is no terminal.
_LINE_EVERY = 2.0


class Counts:
    """How far the calls of each country have come."""

    STAGES = ("sent", "captured", "published", "stored")

    def __init__(self, batch: Sequence[Call]) -> None:
        self._country = {call.id: call.country for call in batch}
        self._planned = Counter(self._country.values())
        self.by_stage: dict[str, Counter[str]] = {stage: Counter() for stage in self.STAGES}

    def sent(self, answer: Answer) -> None:
        """One more call was answered."""
        self.by_stage["sent"][answer.call.country] += 1

    def seen(self, seen: Seen) -> None:
        """Take over what was observed."""
        for stage, identities in (
            ("captured", seen.captured),
            ("published", seen.published),
            ("stored", seen.stored),
        ):
            self.by_stage[stage] = Counter(self._country[identity] for identity in identities)

    def line(self) -> str:
        """All stages in one line."""
        return "  ".join(f"{stage} {found.total()}" for stage, found in self.by_stage.items())

    def table(self) -> Table:
        """All stages, a row for each site."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("site")
        table.add_column("header wm-site-id", style="dim")
        for stage in self.STAGES:
            table.add_column(stage, justify="right")
        for country, site in SITES.items():
            cells = (self._cell(stage, country) for stage in self.STAGES)
            note = f"{site} or none" if country == "US" else site
            table.add_row(country, note, *cells)
        table.add_section()
        total = self._planned.total()
        table.add_row(
            *("all", ""),
            *(_cell(found.total(), total) for found in self.by_stage.values()),
            style="bold",
        )
        return table

    def _cell(self, stage: str, country: str) -> Text:
        return _cell(self.by_stage[stage][country], self._planned[country])


def _cell(count: int, planned: int) -> Text:
    return Text(f"{count:,}", style="green" if count == planned else "yellow", justify="right")


class Screen:
    """The terminal; plain lines where the output is not one."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self._started = time.monotonic()
        if not self.console.is_terminal:
            # A log has no width of its own; a path must not be broken by one.
            self.console.width = 240
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def say(self, sentence: str) -> None:
        """One line about what is going on, with the seconds since the start."""
        elapsed = time.monotonic() - self._started
        self.console.print(f"[dim]{elapsed:5.1f} s[/dim]  {escape(sentence)}", soft_wrap=True)

    def problem(self, sentence: str) -> None:
        """Something is wrong, and what to do about it."""
        self.console.print(Text(sentence, style="bold red"), soft_wrap=True)

    @contextmanager
    def progress(self, counts: Counts) -> Iterator[_Progress]:
        """Show `counts` while they change."""
        if not self.console.is_terminal:
            said = ""

            def say() -> None:
                nonlocal said
                if counts.line() != said:
                    said = counts.line()
                    self.say(said)

            yield _Progress(say, _LINE_EVERY)
            say()
            self.show(counts.table())
            return
        with Live(counts.table(), console=self.console, auto_refresh=False) as live:
            yield _Progress(lambda: live.update(counts.table(), refresh=True), 0.1)
            live.update(counts.table(), refresh=True)

    def heading(self, text: str) -> None:
        """The start of a part of the report."""
        self.console.print()
        self.console.print(Text(text, style="bold cyan"))

    def show(self, part: RenderableType) -> None:
        """A part of the report."""
        with self.console.capture() as drawn:
            self.console.print(Padding(part, (0, 0, 0, 2), expand=False))
        # Rich fills lines with blanks; a log need not have them.
        for line in drawn.get().splitlines():
            print(line.rstrip())

    def lines(self, text: str) -> None:
        """Text that people copy: never wrapped."""
        for line in text.splitlines():
            self.console.print(f"  {line}", soft_wrap=True, markup=False)


class _Progress:
    """Draws, but not more often than makes sense."""

    def __init__(self, draw: Callable[[], None], every: float) -> None:
        self._draw = draw
        self._every = every
        self._next = time.monotonic() + every

    def tick(self) -> None:
        """Draw when it is time to."""
        if time.monotonic() >= self._next:
            self._draw()
            self._next = time.monotonic() + self._every


# -- parts of the report --------------------------------------------------------------------


def files(found: Sequence[Any]) -> RenderableType:
    """A short tree of the lake's files, from rows of the ledger."""
    folders: dict[Path, dict[str, list[Any]]] = {}
    for file in found:
        folder = (Path(urlsplit(file.bucket).path) / file.path).parent
        folders.setdefault(folder.parent, {}).setdefault(folder.name, []).append(file)
    trees = []
    for folder in sorted(folders):
        tree = Tree(f"[bold]{escape(str(shown(folder)))}[/bold]", guide_style="dim")
        for endpoint, its in sorted(folders[folder].items()):
            rows, size = sum(file.rows for file in its), sum(file.bytes for file in its)
            counted = f"{_many(len(its), 'file')}, {_many(rows, 'row')}, {size / 1000:,.0f} kB"
            tree.add(f"{escape(endpoint)}  [dim]{counted}[/dim]")
        trees.append(tree)
    return Group(*trees)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def explained(row: dict[str, Any]) -> RenderableType:
    """One request with its answer, as a person asks about it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    took = (row["response_ts"] - row["request_ts"]).total_seconds() * 1000
    table.add_row("request", f"{row['method']} {escape(row['path'])}")
    table.add_row("from", f"consumer {row['consumer_id']}, site {row['site_id'] or 'not named'}")
    table.add_row("at", f"{row['request_ts']:%Y-%m-%d %H:%M:%S.%f} UTC, took {took:.1f} ms")
    table.add_row("they sent", escape(_short(row["request_body"])))
    table.add_row("answer", Text(str(row["response_code"]), style="bold red"))
    table.add_row("we said", escape(_short(row["response_body"])))
    if row["error_reason"] and _short(row["error_reason"]) != _short(row["response_body"]):
        table.add_row("reason", Text(row["error_reason"], style="bold"))
    table.add_row("trace", row["trace_id"])
    return table


def redacted(examples: Sequence[Redacted]) -> RenderableType:
    """What was sent beside what the lake holds."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "what was sent", "what the lake holds"):
        table.add_column(column, overflow="fold")
    for example in examples:
        table.add_row(example.name, escape(example.sent), escape(example.stored))
    return table


def _short(text: str | None, length: int = 300) -> str:
    if not text:
        return "(nothing)"
    try:
        text = json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        pass
    return text if len(text) <= length else f"{text[:length]} …"
