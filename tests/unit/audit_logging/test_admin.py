"""Admin of flags and rules: the pages load, and a bad rule is refused with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from audit_logging.models import CaptureFlags

pytestmark = pytest.mark.django_db

FORM = {
    "service_name": "shop",
    "enabled": "on",
    "response_bodies": "on",
    "max_body_bytes": "",
    "sample_rate": "1.0",
    "rules-TOTAL_FORMS": "1",
    "rules-INITIAL_FORMS": "0",
    "rules-0-position": "10",
    "rules-0-match": "regex",
    "rules-0-pattern": "^/orders/",
    "rules-0-level": "metadata",
}


@pytest.fixture
def admin(admin_client: Client, settings: Any) -> Client:
    settings.ALLOWED_HOSTS = ["testserver"]
    return admin_client


def test_pages_load(admin: Client) -> None:
    flags = CaptureFlags.objects.create(service_name="*")
    for url in ("", "add/", f"{flags.pk}/change/"):
        assert admin.get(f"/admin/audit_logging/captureflags/{url}").status_code == 200


def test_flags_and_rules_are_saved(admin: Client) -> None:
    answer = admin.post("/admin/audit_logging/captureflags/add/", FORM)
    assert answer.status_code == 302
    flags = CaptureFlags.objects.get()
    assert str(flags) == "shop"
    assert [str(item) for item in flags.rules.all()] == [
        "matches the regular expression ^/orders/: no bodies"
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rules-0-pattern": "(a+)+"}, "A repetition inside a repetition can stall"),
        ({"rules-0-pattern": "(a|aa)+"}, "alternatives that can begin alike"),
        ({"rules-0-pattern": "("}, "Not a regular expression"),
        ({"rules-0-pattern": ""}, "This field is required"),
        ({"service_name": "two words"}, "without spaces"),
        ({"sample_rate": "1.5"}, "less than or equal to 1"),
        ({"max_body_bytes": "99999999999"}, "less than or equal to 16777216"),
    ],
)
def test_what_is_wrong_is_said_beside_the_field(
    admin: Client, change: dict[str, str], reason: str
) -> None:
    answer = admin.post("/admin/audit_logging/captureflags/add/", FORM | change)
    assert answer.status_code == 200
    assert reason in answer.content.decode()
    assert not CaptureFlags.objects.exists()


def test_a_substring_rule_may_hold_anything(admin: Client) -> None:
    change = {"rules-0-match": "substring", "rules-0-pattern": "(a+)+"}
    assert admin.post("/admin/audit_logging/captureflags/add/", FORM | change).status_code == 302


def test_rules_that_are_too_costly_together_are_refused(admin: Client) -> None:
    rules = {"rules-TOTAL_FORMS": "20"}
    for n in range(20):
        rules |= {
            f"rules-{n}-position": "10", f"rules-{n}-match": "regex",
            f"rules-{n}-pattern": f"[a-z]*{n}", f"rules-{n}-level": "none",
        }  # fmt: skip
    answer = admin.post("/admin/audit_logging/captureflags/add/", FORM | rules)
    assert answer.status_code == 200
    assert "All regular expressions together" in answer.content.decode()
    assert not CaptureFlags.objects.exists()
    # Those that are to be deleted cost nothing.
    rules |= {f"rules-{n}-DELETE": "on" for n in range(2, 20)}
    assert admin.post("/admin/audit_logging/captureflags/add/", FORM | rules).status_code == 302
