"""SQL over the lake, in this process: DuckDB on the files that the ledger calls finished.

The question sees one table, ``audit_logs``, and nothing else: no files, no network, no
extensions, no settings, no variables of this process. It is for engineers, who may read every
site; suppliers never get SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..conf import conf
from ..exceptions import QueryError
from ..lake.layout import KEYS
from ..lake.storage import get_bucket
from ..models import Batch, LakeFile, Site

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

TABLE = "audit_logs"


def query(sql: str, *, sites: Sequence[str] = (), limit: int | None = None) -> pa.Table:
    """Answer one SELECT over `audit_logs`.

    :param sites: codes of the sites to read; all when empty.
    :param limit: rows of the answer at most.
    :raises QueryError: one line that says what is wrong with the question.
    """
    import duckdb
    import pyarrow as pa

    known = set(Site.objects.values_list("code", flat=True))
    if unknown := sorted(set(sites) - known):
        raise QueryError(
            f"There is no site {', '.join(unknown)}. Use {', '.join(sorted(known)) or 'none'}."
        )
    source = dataset(files(sites))
    connection = connect()
    try:
        connection.register(TABLE, source)
        # From here on nothing but this statement runs, and no setting can be changed.
        connection.execute("SET TimeZone = 'UTC'; SET lock_configuration = true")
        statement = _single_select(connection, sql)
        relation = connection.sql(statement)
        if relation is None:
            raise QueryError("The question has no answer. Use a SELECT.")
        if limit is not None:
            relation = relation.limit(limit)
        answer = relation.to_arrow_table()
        return answer if isinstance(answer, pa.Table) else pa.table(answer)
    except duckdb.Error as error:
        raise QueryError(_line(error, source.schema.names)) from error
    except (OSError, pa.ArrowException) as error:
        raise QueryError(f"A file of the lake cannot be read: {_first(error)}") from error
    finally:
        connection.close()


def files(sites: Sequence[str] = ()) -> Iterable[dict[str, Any]]:
    """The finished files, as the ledger knows them."""
    found = LakeFile.objects.filter(batch__state=Batch.State.DONE).order_by("id")
    if sites:
        found = found.filter(site__in=sites)
    return found.values(
        "site",
        "bucket",
        "path",
        "service",
        "date",
        "endpoint",
        "min_request_ts",
        "max_request_ts",
    ).iterator(chunk_size=5000)


def table_schema() -> pa.Schema:
    """The columns of `audit_logs`: an event's, then the site and the lake's partition keys."""
    import pyarrow as pa

    from ..lake.schema import lake_schema

    extra = [pa.field("site", pa.string())]
    extra += [pa.field(key, pa.date32() if key == "date" else pa.string()) for key in KEYS]
    return pa.schema([*lake_schema(), *extra])


def dataset(found: Iterable[dict[str, Any]]) -> ds.Dataset:
    """One dataset over the files; what the ledger knows of each prunes it unopened."""
    import pyarrow.dataset as ds

    schema = table_schema()
    by_bucket: dict[str, tuple[list[str], list[ds.Expression]]] = {}
    for file in found:
        paths, known = by_bucket.setdefault(file["bucket"], ([], []))
        paths.append(file["path"])
        guarantee = ds.field("site") == file["site"]
        for key in KEYS:
            guarantee &= ds.field(key) == file[key]
        known.append(
            guarantee
            & (ds.field("request_ts") >= file["min_request_ts"])
            & (ds.field("request_ts") <= file["max_request_ts"])
        )
    parts = []
    for url, (paths, known) in by_bucket.items():
        filesystem, prefix = get_bucket(url).arrow()
        parts.append(
            ds.FileSystemDataset.from_paths(
                [prefix + path for path in paths],
                schema=schema,
                format=ds.ParquetFileFormat(),
                filesystem=filesystem,
                partitions=known,
            )
        )
    if not parts:
        return ds.dataset(schema.empty_table())
    return parts[0] if len(parts) == 1 else ds.dataset(parts)


def connect() -> duckdb.DuckDBPyConnection:
    """A database of its own in memory, which reaches nothing outside, bounded by the settings."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            # A name in a question never means a variable of this process.
            "python_enable_replacements": "false",
            "python_scan_all_frames": "false",
            # Nothing is spilled to disk: rows of the audit log stay in the lake.
            "temp_directory": "",
            "memory_limit": f"{conf.QUERY_MEMORY_BYTES}B",
            "threads": str(conf.QUERY_THREADS),
        },
    )


def _single_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    import duckdb

    statements = connection.extract_statements(sql)
    if not statements:
        raise QueryError(f"The question is empty. Ask, for example: FROM {TABLE} LIMIT 10")
    if len(statements) > 1:
        raise QueryError(f"There are {len(statements)} statements. Ask one at a time.")
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name
        raise QueryError(f"{kind} is not possible: the lake is read-only. Use a SELECT.")
    return statements[0].query.strip().rstrip(";")


def _line(error: BaseException, columns: Sequence[str]) -> str:
    text = _first(error)
    if re.search(r"column .* not found|Referenced column", text, re.IGNORECASE):
        text += f" The columns of {TABLE} are: {', '.join(columns)}."
    elif "does not exist" in text and "Table" in text:
        text += f" The only table is {TABLE}."
    elif "file system operations are disabled" in text:
        text = f"Files cannot be read from a question; the only table is {TABLE}."
    elif "failed: IOError" in text or "failed: FileNotFound" in text:
        text = f"A file of the lake cannot be read; audit_verify says more. ({text})"
    return text


def _first(error: BaseException) -> str:
    # The first paragraph is the message; below it DuckDB quotes the question.
    return " ".join(str(error).strip().split("\n\n")[0].split()) or type(error).__name__
