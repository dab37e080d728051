"""What the tests of operators' pages share."""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth.models import Permission, User
from django.test import Client

from audit_logging import uptake
from audit_publisher.models import PublisherProcess

REGIONS = "/admin/audit_publisher/regionwish/"
SPOOL = "/admin/audit_publisher/spoolpage/"
TRAIL = "/admin/audit_publisher/trailline/"


def person(name: str, *permissions: str, **values: Any) -> Client:
    """A staff user with these permissions, logged in, whose requests are checked for CSRF."""
    user = User.objects.create_user(name, is_staff=True, **values)
    for codename in permissions:
        user.user_permissions.add(Permission.objects.get(codename=codename))
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    return client


def send(client: Client, url: str, **fields: Any) -> Any:
    """POST as a browser does that has seen the page before."""
    client.get(url)
    token = client.cookies["csrftoken"].value if "csrftoken" in client.cookies else ""
    return client.post(url, {**fields, "csrfmiddlewaretoken": token})


def heard(host: str = "web-1", pid: int = 7, age: float = 1.0, **changes: Any) -> PublisherProcess:
    """A publisher process that has reported."""
    state: dict[str, Any] = {
        "order": ["primary", "secondary"],
        "drained": [],
        "first": None,
        "upkeep_late": False,
        "regions": {
            name: {"known": True, "up": True, "open": False, "error": "", "missing_topics": []}
            for name in ("primary", "secondary")
        },
        "spool": {
            "folder": "/var/spool/publisher",
            "max_bytes": 1000,
            "records": 0,
            "bytes": 0,
            "refused": 0,
            "used_bytes": 0,
            "oldest": None,
            "drain": "empty",
            "problem": "",
            "refuses": "",
        },
    }
    for name, value in changes.items():
        state[name] = {**state[name], **value} if isinstance(value, dict) else value
    now = time.time()
    return PublisherProcess.objects.create(
        process=f"{host}:{pid}",
        host=host,
        pid=pid,
        started_at=uptake.moment(now - 60),
        version="1",
        last_seen=uptake.moment(now - age),
        state=state,
    )


DOWN = {"known": True, "up": False, "open": True, "error": "no broker", "missing_topics": []}
