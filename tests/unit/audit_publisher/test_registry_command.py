"""`audit_registry`: with the folder, with a registry that is down, and with a real one."""

from __future__ import annotations

import uuid
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from tests.unit.audit_publisher.conftest import Configure

pytestmark = pytest.mark.django_db


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("audit_registry", *arguments, stdout=out)
    return out.getvalue()


def test_the_folder_enforces_by_itself() -> None:
    assert run().split()[:4] == ["api-audit-events-value", "schema", "1", "refuses"]


def test_a_registry_that_is_down_is_named(configure: Configure) -> None:
    configure(REGISTRY_URL="http://127.0.0.1:1/", REGISTRY_TIMEOUT=0.2)
    with pytest.raises(CommandError, match="AUDIT_PUBLISHER_REGISTRY_URL"):
        run()


def test_a_registry_that_takes_everything_is_told(
    configure: Configure, schema_registry: Any
) -> None:
    topic = f"events-{uuid.uuid4().hex[:8]}"
    configure(REGISTRY_URL=schema_registry.url, DEFAULT_TOPIC=topic, REGISTRY_TIMEOUT=10)
    # By the rule for all subjects; it says NONE of this one.
    assert "refuses" in run()
    schema_registry.request("PUT", "/config", {"compatibility": "NONE"})
    try:
        with pytest.raises(CommandError, match="--enforce"):
            run()
        assert "refuses" in run("--enforce")
        assert "refuses" in run()
    finally:
        schema_registry.request("PUT", "/config", {"compatibility": "BACKWARD"})
