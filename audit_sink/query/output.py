"""Answers as people and programs want them: a table, JSON, CSV or Parquet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "json", "csv", "parquet")

#: Longest text that one cell of a table shows.
_CELL = 200


def write_table(answer: pa.Table, out: TextIO) -> None:
    """Print `answer` for a person."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption=_rows(len(answer)), caption_justify="left")
    for field in answer.schema:
        table.add_column(Text(field.name), justify="right" if _is_number(field) else "left")
    for row in rows(answer):
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    terminal = out.isatty()
    # Not a terminal: nothing is folded or cut, so that a pipe sees each row in a line.
    Console(file=out, width=None if terminal else 100_000).print(table)


def write_json(answer: pa.Table, out: TextIO) -> None:
    """Write `answer` as a JSON array, one object a line."""
    out.write("[")
    for index, row in enumerate(rows(answer)):
        out.write(",\n " if index else "\n ")
        out.write(json.dumps(row, default=str, ensure_ascii=False))
    out.write("\n]\n" if len(answer) else "]\n")


def write_csv(answer: pa.Table, out: TextIO) -> None:
    """Write `answer` as CSV with a header line; maps and lists as JSON."""
    import csv

    writer = csv.writer(out)
    writer.writerow(answer.column_names)
    for row in rows(answer):
        writer.writerow(
            json.dumps(value, default=str, ensure_ascii=False)
            if isinstance(value, (dict, list))
            else value
            for value in row.values()
        )


def write_parquet(answer: pa.Table, out: BinaryIO) -> None:
    """Write `answer` as one Parquet file."""
    import pyarrow.parquet as pq

    pq.write_table(answer, out, compression="zstd")


def rows(answer: pa.Table) -> Any:
    """Yield each row as a dict of plain values; times as ISO 8601, maps as dicts."""
    import pyarrow as pa

    maps = {field.name for field in answer.schema if pa.types.is_map(field.type)}
    for batch in answer.to_batches(max_chunksize=1000):
        # Columns, not rows: two columns of an answer may have the same name.
        columns = [column.to_pylist() for column in batch.columns]
        names = _unique(batch.schema.names)
        for values in zip(*columns, strict=True):
            yield {
                name: _plain(dict(value) if original in maps and value is not None else value)
                for name, original, value in zip(names, batch.schema.names, values, strict=True)
            }


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        value = value.replace("\n", " ")
    text = json.dumps(value, default=str) if isinstance(value, (dict, list)) else str(value)
    # A log holds what strangers sent: no control character of theirs reaches a terminal.
    text = "".join(c if c.isprintable() else "·" for c in text)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _is_number(field: pa.Field) -> bool:
    import pyarrow as pa

    return pa.types.is_integer(field.type) or pa.types.is_floating(field.type)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
