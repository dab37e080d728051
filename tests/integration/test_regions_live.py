"""What operators want of regions reaches every process of a running publisher, and it says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import eventually
from tests.unit.audit_publisher.conftest import CONSUMER
from tests.unit.audit_publisher.served import ROOT, Server, serve

pytestmark = pytest.mark.slow


def manage(data: Path, *arguments: str, **options: str) -> str:
    found = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")}
        | {"DJANGO_SETTINGS_MODULE": "config.settings", "AUDIT_DATA_DIR": str(data), **options},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def publish(server: Server) -> str:
    """Where one event went: a region, or "spooled"."""
    now = time.time()
    event = {
        "request_id": str(uuid.uuid4()),
        "service_name": "inventory-api",
        "endpoint_name": "items",
        "path": "/items",
        "method": "GET",
        "response_code": 200,
        "request_ts": now,
        "response_ts": now,
    }
    status, answer = server.post([("WM_CONSUMER.ID", CONSUMER)], json.dumps(event).encode())
    assert status == 200, answer
    return str(answer.get("region") or answer["status"])


def everywhere(server: Server, place: str) -> bool:
    """Whether events go there, whichever process takes them."""
    return all(publish(server) == place for _ in range(12))


def test_regions_are_drained_and_taken_back_in_every_process(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    options = {
        "AUDIT_PUBLISHER_SECONDARY_URL": f"local://{tmp_path}/second.sqlite3",
        "AUDIT_PUBLISHER_SIGNATURE": "off",
        "AUDIT_PUBLISHER_REFRESH_SECONDS": "0.3",
    }

    def region(*arguments: str) -> Any:
        return manage(tmp_path, "audit_region", *arguments, **options)

    def listed() -> Any:
        return json.loads(region("list", "--json"))

    with serve(tmp_path, pem, **options) as server:
        assert publish(server) == "primary"
        # Until both workers have seen both regions, the command asks back whether it is meant.
        eventually(
            lambda: [each["takes_records"] for each in listed()["regions"]] == [2, 2],
            timeout=30,
            message=lambda: str(listed()),
        )
        region("fail-over", "secondary", "--reason=slow disks")
        eventually(lambda: everywhere(server, "secondary"), timeout=30)
        region("drain", "secondary", "--reason=new disks")
        eventually(lambda: everywhere(server, "primary"), timeout=30)
        region("drain", "primary", "--reason=both halls", "--yes")
        eventually(lambda: everywhere(server, "spooled"), timeout=30)
        eventually(
            lambda: (
                [
                    (process["order"], process["spool"]["records"] > 0)
                    for process in listed()["processes"]
                    if process["taken_up"]
                ]
                == [([], True)] * 2
            ),
            timeout=30,
            message=lambda: str(listed()),
        )
        # A drained region gets nothing of what waits, either; back again, it gets all of it.
        region("take-back", "primary", "--reason=done")
        eventually(lambda: everywhere(server, "primary"), timeout=30)
        eventually(
            lambda: (
                not json.loads(
                    manage(tmp_path, "audit_publisher_spool", "list", "--json", **options)
                )["streams"]
            ),
            timeout=30,
        )
    # The server has ended well, and its spool is empty.
    assert listed()["processes"] == []
    lines = manage(tmp_path, "audit_trail", "--json", **options).splitlines()
    wished = [json.loads(line) for line in lines if "regionwish" in line]
    assert [line["reason"] for line in wished] == [
        "slow disks",
        "new disks",
        "both halls",
        "done",
    ]
