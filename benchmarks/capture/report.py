"""The tables, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .conductor import Figure

_MICRO = 1e6
_FROM_NANO = 1e-3


def show(name: str, found: Sequence[Any]) -> None:
    """Print one section's table."""
    title, heads, rows = _TABLES[name](found)
    print(f"\n{title}\n")
    print(table(heads, rows), flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    marks = ["---"] + ["--:"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, marks, *rows])


def _latency(found: Sequence[Any]) -> Any:
    rows = [
        (
            each.contender + ("" if each.bodies else " (no bodies)"),
            each.mode + ("" if each.chain else ", alone"),
            each.median.text(_FROM_NANO, 0, "+"),
            each.p99.text(_FROM_NANO, 0, "+"),
            each.cpu.text(_FROM_NANO, 0, "+"),
            each.hot.text(_FROM_NANO, 0, "+"),
            each.hot_p99.text(_FROM_NANO, 0, "+"),
            each.bare_median.text(_FROM_NANO),
            each.bare_p99.text(_FROM_NANO),
        )
        for each in found
    ]
    heads = (
        "recorder",
        "service",
        "added, median",
        "added, p99",
        "added CPU of the request's thread",
        "added back to back, median",
        "added back to back, p99",
        "bare, median",
        "bare, p99",
    )
    return (
        "Added to a request of 2 KB in and out; µs, median of the rounds (middle half)",
        heads,
        rows,
    )


def _cpu(found: Sequence[Any]) -> Any:
    rows = [
        (
            each.broker,
            each.load,
            each.process.text(_MICRO),
            each.server.text(_MICRO) if each.server else "-",
        )
        for each in found
    ]
    return (
        "CPU of the whole tier for an event of 2 KB in and out; µs, median (middle half)",
        ("broker", "load", "audited process", "broker's server"),
        rows,
    )


def _holds(found: Sequence[Any]) -> Any:
    def both(values: tuple[float, float]) -> str:
        return f"{values[0] * _FROM_NANO:,.0f} → {values[1] * _FROM_NANO:,.0f}"

    rows = [
        (each.case, both(each.p50), both(each.p99), both(each.p999), both(each.longest))
        for each in found
    ]
    return (
        "How late a thread wakes that slept 1 ms, bare → audited; µs",
        ("bodies", "median", "p99", "p99.9", "longest"),
        rows,
    )


def _throughput(found: Sequence[Any]) -> Any:
    rows = [
        (
            each.server,
            f"{each.bare.median:,.0f}",
            f"{each.audited.median:,.0f}",
            each.ratio.text(100),
            each.per_cpu.text(100),
            f"{each.lost:,.0f}",
        )
        for each in found
    ]
    return (
        "At saturation: requests a second, and audited in % of bare (middle half)",
        ("server", "bare", "audited", "requests/s, %", "requests per CPU second, %", "events lost"),
        rows,
    )


def _memory(found: Sequence[Any]) -> Any:
    rows = [(each.what, each.bare, each.audited, each.verdict) for each in found]
    return ("Memory", ("what", "bare", "audited", "so"), rows)


def _faults(found: Sequence[Any]) -> Any:
    def added(figure: Figure) -> str:
        return figure.text(_FROM_NANO, 0, "+")

    rows = [
        (
            each.fault,
            added(each.median),
            added(each.p99),
            each.throughput.text(100),
            each.kept,
        )
        for each in found
    ]
    return (
        "Each fault against the healthy service in the same rounds; µs, and requests/s in %",
        ("fault", "median", "p99", "throughput, %", "what became of the events"),
        rows,
    )


_TABLES = {
    "latency": _latency,
    "peers": _latency,
    "cpu": _cpu,
    "holds": _holds,
    "throughput": _throughput,
    "memory": _memory,
    "faults": _faults,
}
