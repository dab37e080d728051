"""Modules that texts name are there: they stay behind when modules move."""

from __future__ import annotations

import re
from importlib.util import find_spec, resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
APPS = ("audit_logging", "audit_publisher", "audit_sink")
PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Python files of the project, each with a slash before it."""
    found = list(ROOT.glob("*.py"))
    for folder in (*APPS, "benchmarks", "config", "examples", "tests"):
        found += (ROOT / folder).rglob("*.py")
    return [f"/{path.relative_to(ROOT)}" for path in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_pages_name_exist(page: Path, files: list[str]) -> None:
    named = set(re.findall(r"`([\w./]+\.py)`", page.read_text()))
    wrong = [name for name in named if not any(file.endswith(f"/{name}") for file in files)]
    assert wrong == []


@pytest.mark.parametrize("app", APPS)
def test_modules_that_docstrings_name_exist(app: str) -> None:
    wrong = []
    for path in (ROOT / app).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        package = ".".join(parts[:-1])
        for name in re.findall(r":mod:`~?([\w.]+)`", path.read_text()):
            if find_spec(resolve_name(name, package)) is None:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []
