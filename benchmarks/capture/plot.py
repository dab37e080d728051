"""The picture of the latencies: one row for each recorder, its median and p99 on a log axis.

Written by hand as SVG, which needs no package; its colours are legible on light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

_WIDTH = 860
_LEFT = 250
_RIGHT = 40
_TOP = 62
_ROW = 38
_BOTTOM = 62
_LOWEST, _HIGHEST = 1.0, 100_000.0

_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.small { font-size: 11px; fill: #57606a; }
.title { font-size: 15px; font-weight: 600; }
.ours { font-weight: 700; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.span { stroke: #8c959f; stroke-width: 2; }
.middle { stroke-width: 7; stroke-opacity: 0.35; stroke-linecap: round; }
.median { fill: #0969da; stroke: #0969da; }
.p99 { fill: #bc4c00; stroke: #bc4c00; }
.page { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .span { stroke: #656c76; }
  .median { fill: #4493f8; stroke: #4493f8; }
  .p99 { fill: #f0883e; stroke: #f0883e; }
  .page { fill: #0d1117; }
}
"""


def draw(found: Sequence[Any]) -> str:
    """Return the picture of the synchronous service's figures."""
    rows = sorted(
        (each for each in found if each.mode == "sync"), key=lambda each: each.median.median
    )
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="Time that each recorder adds to a request">',
        f"<style>{_STYLE}</style>",
        f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>',
        _text(20, 26, "Time added to a request, 2 KB of JSON in and out", "title"),
        _text(20, 44, "over the same Django service without a recorder; less is better", "small"),
        *_axis(height),
    ]
    for number, each in enumerate(rows):
        parts += _row(each, _TOP + _ROW * number + _ROW / 2)
    parts += _legend(height)
    return "\n".join([*parts, "</svg>", ""])


def _x(micros: float) -> float:
    share = math.log(min(max(micros, _LOWEST), _HIGHEST) / _LOWEST) / math.log(_HIGHEST / _LOWEST)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _axis(height: int) -> Iterator[str]:
    end = height - _BOTTOM
    for power, label in enumerate(("1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms")):
        x = _x(10.0**power)
        yield _line(x, _TOP, x, end, "grid")
        yield _text(x, end + 18, label, "small", "middle")


def _row(each: Any, y: float) -> Iterator[str]:
    name = each.contender + ("" if each.bodies else " (no bodies)")
    yield _text(
        _LEFT - 14, y + 4, name, "ours" if each.contender.startswith("django-api") else "", "end"
    )
    median, p99 = each.median.median / 1000, each.p99.median / 1000
    yield _line(_x(median), y, _x(p99), y, "span")
    for figure, kind in ((each.median, "median"), (each.p99, "p99")):
        yield _line(_x(figure.low / 1000), y, _x(figure.high / 1000), y, f"{kind} middle")
        yield (
            f'<circle class="{kind}" cx="{_x(figure.median / 1000):.1f}" cy="{y}" r="5">'
            f"<title>{name}, {kind}: {figure.text(1e-3)} µs</title></circle>"
        )


def _legend(height: int) -> Iterator[str]:
    y = height - 16
    x: float = _LEFT
    for kind, label in (("median", "median"), ("p99", "p99")):
        yield f'<circle class="{kind}" cx="{x}" cy="{y - 4}" r="5"/>'
        yield _text(x + 12, y, label, "small")
        x += 80
    yield _line(x, y - 4, x + 26, y - 4, "median middle")
    yield _text(x + 36, y, "the middle half of the rounds", "small")


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
