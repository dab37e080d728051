"""SQL over the finished files, and nothing but them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command

from audit_sink.exceptions import QueryError
from audit_sink.failpoints import armed
from audit_sink.models import LakeFile
from audit_sink.query.engine import query, table_schema

from .conftest import World


def ask(*arguments: str, **options: Any) -> str:
    out = io.StringIO()
    call_command("audit_query", *arguments, stdout=out, **options)
    return out.getvalue()


@pytest.fixture
def lake(world: World) -> World:
    world.publish(
        world.event("US", response_code=200, headers={"a": "ü"}),
        world.event("US", response_code=500, service_name="other"),
        world.event("CA", response_code=200, endpoint_name="dsd/v1/x"),
    )
    world.ingest()
    return world


def test_all_sites_are_one_table(lake: World) -> None:
    answer = query("SELECT site, service, endpoint, response_code FROM audit_logs ORDER BY ALL")
    assert [tuple(row.values()) for row in answer.to_pylist()] == [
        ("CA", "inventory-api", "dsd", 200),
        ("US", "inventory-api", "iac", 200),
        ("US", "other", "iac", 500),
    ]


def test_columns_have_their_types(lake: World) -> None:
    answer = query(
        "SELECT typeof(request_ts), typeof(headers), typeof(date), headers['a'],"
        " request_ts >= TIMESTAMPTZ '2027-01-15', date FROM audit_logs WHERE headers['a'] = 'ü'"
    )
    values = list(answer.to_pylist()[0].values())
    assert values[:5] == [
        "TIMESTAMP WITH TIME ZONE",
        "MAP(VARCHAR, VARCHAR)",
        "DATE",
        "ü",
        True,
    ]
    assert values[5].isoformat() == "2027-01-15"


def test_a_site_can_be_read_alone_and_its_neighbours_are_not_opened(lake: World) -> None:
    for file in LakeFile.objects.filter(site="US"):
        (Path(file.bucket.removeprefix("file://")) / file.path).unlink()
    assert query("SELECT count(*) AS n FROM audit_logs", sites=["CA"]).to_pylist() == [{"n": 1}]
    by_filter = "SELECT count(request_id) AS n FROM audit_logs WHERE "
    for condition in ("site = 'CA'", "endpoint = 'dsd'"):
        assert query(by_filter + condition).to_pylist() == [{"n": 1}]
    for condition in ("date = '2020-01-01'", "request_ts < TIMESTAMPTZ '2027-01-01'"):
        assert query(by_filter + condition).to_pylist() == [{"n": 0}]
    with pytest.raises(QueryError, match="cannot be read"):
        query("SELECT sum(response_code) FROM audit_logs")


def test_only_finished_batches_are_read(world: World) -> None:
    world.publish(world.event())
    with armed("after_upload"):
        world.ingest()
    assert query("SELECT count(*) AS n FROM audit_logs").to_pylist() == [{"n": 0}]


def test_an_empty_lake_has_all_columns(world: World) -> None:
    answer = query("SELECT * FROM audit_logs")
    assert answer.column_names == table_schema().names
    assert len(answer) == 0
    assert "request_id" in ask("SELECT * FROM audit_logs")


secret = pa.table({"password": ["hunter2"]})


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_parquet('{file}')",
        "SELECT * FROM parquet_scan(['{file}'])",
        "SELECT * FROM '{file}'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/etc/passwd')",
        "SELECT * FROM read_json('http://127.0.0.1:1/x')",
        "SELECT * FROM parquet_metadata('{file}')",
        "SELECT * FROM sniff_csv('/etc/passwd')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT getenv('HOME')",
        "SELECT * FROM secret",
        "SELECT * FROM answer",
        "SELECT * FROM duckdb_extensions()",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM query_table('/etc/passwd')",
        "ATTACH '{folder}/x.db'",
        "COPY audit_logs TO '{folder}/stolen.csv'",
        "COPY (SELECT 1) TO '{folder}/stolen.csv'",
        "EXPORT DATABASE '{folder}/stolen'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "CREATE TABLE x AS SELECT 1",
        "CREATE MACRO audit_logs() AS 1",
        "DROP VIEW audit_logs",
        "DELETE FROM audit_logs",
        "INSERT INTO audit_logs DEFAULT VALUES",
        "PREPARE x AS SELECT 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; SET threads = 9",
        "",
        "-- nothing",
        "SELEC",
    ],
)
def test_a_question_reaches_nothing_but_the_table(lake: World, sql: str) -> None:
    answer = pa.table({"password": ["hunter2"]})  # noqa: F841 - must not be found by its name
    file = next((lake.folder / "sink").rglob("*.parquet"))
    with pytest.raises(QueryError) as caught:
        query(sql.format(file=file, folder=lake.folder))
    assert "\n" not in str(caught.value)
    assert not list(lake.folder.glob("stolen*"))
    assert not list(lake.folder.glob("x.db"))


def test_an_unknown_column_is_answered_with_the_columns_there_are(lake: World) -> None:
    with pytest.raises(QueryError, match=r"foo.*The columns of audit_logs are: request_id, "):
        query("SELECT foo FROM audit_logs")


def test_an_unknown_site_is_named(lake: World) -> None:
    with pytest.raises(QueryError, match=r"There is no site XX\. Use CA, MX, US"):
        query("SELECT 1", sites=["XX"])


# -- the command --------------------------------------------------------------------------------


def test_a_person_sees_a_table(lake: World) -> None:
    out = ask("SELECT response_code, count(*) AS n FROM audit_logs GROUP BY 1 ORDER BY 1")
    lines = [line.split() for line in out.splitlines()]
    assert ["200", "2"] in lines
    assert ["500", "1"] in lines
    assert "2 rows" in out


def test_control_characters_of_strangers_do_not_reach_the_terminal(world: World) -> None:
    world.publish(world.event(path="/x\x1b[2J[red]"))
    world.ingest()
    out = ask("SELECT path FROM audit_logs")
    assert "\x1b" not in out
    assert "[red]" in out


def test_formats_for_programs(lake: World, tmp_path: Path) -> None:
    sql = "SELECT site, headers, request_ts FROM audit_logs ORDER BY site, response_code"
    rows = json.loads(ask(sql, "--format", "json"))
    assert [row["site"] for row in rows] == ["CA", "US", "US"]
    assert rows[1]["headers"] == {"a": "ü"}
    assert rows[0]["request_ts"].endswith("+00:00")
    assert json.loads(ask("SELECT 1 AS a, 2 AS a", "--format", "json")) == [{"a": 1, "a_2": 2}]
    assert json.loads(ask("SELECT 1 WHERE false", "--format", "json")) == []
    csv = ask(sql, "--format", "csv").splitlines()
    assert csv[0] == "site,headers,request_ts"
    assert len(csv) == 4
    ask(sql, "--format", "parquet", "--output", str(tmp_path / "x.parquet"))
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 3
    ask(sql, "--format", "json", "--output", str(tmp_path / "x.json"))
    assert len(json.loads((tmp_path / "x.json").read_text())) == 3


def test_site_limit_and_standard_input(lake: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("SELECT site FROM audit_logs"))
    rows = json.loads(ask("-", "--site", "us", "--limit", "1", "--format", "json"))
    assert rows == [{"site": "US"}]


@pytest.mark.parametrize(
    "arguments",
    [["SELECT foo FROM audit_logs"], ["SELECT 1", "--site", "XX"], ["SELECT 1", "--limit", "-1"]],
)
def test_a_wrong_question_is_one_line_and_status_2(world: World, arguments: list[str]) -> None:
    with pytest.raises(CommandError) as caught:
        ask(*arguments)
    assert caught.value.returncode == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_value_that_python_cannot_hold_is_one_clear_line(lake: World, form: str) -> None:
    with pytest.raises(CommandError, match="Cast the column to VARCHAR") as refused:
        ask("SELECT TIMESTAMP '290000-01-01' AS far FROM audit_logs", format=form)
    assert refused.value.returncode == 2
