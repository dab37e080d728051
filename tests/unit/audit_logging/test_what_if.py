"""The page that answers what would happen to a request: saved or not, by the policy's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from audit_logging import policy, what_if
from audit_logging.models import CaptureFlags, CaptureProcess, EndpointRule
from tests.unit.audit_logging.test_admin import FORM

pytestmark = pytest.mark.django_db

URL = "/admin/audit_logging/captureflags/"
LOW = "00-" + "0" * 18 + "1" * 14 + "-00f067aa0ba902b7-01"
HIGH = "00-" + "0" * 18 + "f" * 14 + "-00f067aa0ba902b7-01"


@pytest.fixture
def admin(admin_client: Client, settings: Any) -> Client:
    settings.ALLOWED_HOSTS = ["testserver"]
    return admin_client


@pytest.fixture
def flags() -> CaptureFlags:
    made = CaptureFlags.objects.create(service_name="shop")
    EndpointRule.objects.create(flags=made, position=20, pattern="/orders", level="request")
    EndpointRule.objects.create(flags=made, position=10, pattern="/login", level="none")
    return made


def told(service: str, **base: Any) -> None:
    """A process of the service has told its settings."""
    now = timezone.now()
    everything = policy.Policy(max_body_bytes=9).base() | base
    CaptureProcess.objects.create(
        service_name=service, process=f"{service}:1:1", host="api-1", pid=1, started_at=now,
        source="publisher", since=now, last_seen=now, settings=json.dumps(everything),
    )  # fmt: skip


def text(response: Any) -> str:
    assert response.status_code == 200
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", response.content.decode())))


def asked(admin: Client, path: str, service: str = "shop", traceparent: str = "") -> str:
    return text(
        admin.get(
            URL + "what-if/",
            {"service": service, "what-if-path": path, "what-if-traceparent": traceparent},
        )
    )


def test_the_page_answers_by_what_is_saved(admin: Client, flags: CaptureFlags) -> None:
    assert "Give a path" not in text(admin.get(URL + "what-if/"))
    assert f'href="{"what-if/"}"' in admin.get(URL).content.decode()
    page = asked(admin, "/orders/1")
    assert "Recorded, with the request body." in page
    assert "Rule 2 of 2 (position 20) decides" in page
    assert "path contains /orders → request body only" in page
    page = asked(admin, "/login")
    assert "Not recorded." in page
    assert "Rule 1 of 2 (position 10)" in page
    page = asked(admin, "/else")
    assert "None of the 2 rules is about this path" in page
    assert "Recorded, with request and response bodies." in page
    flags.enabled = False
    flags.save()
    assert "The audit is off for this service." in asked(admin, "/orders")


def test_an_address_is_looked_at_as_the_service_sees_it(admin: Client, flags: Any) -> None:
    page = asked(admin, "https://api.example.com/v1%2Forders/%C3%A9?next=/login#/login")
    assert "/v1/orders/é" in page
    assert "Rule 2 of 2" in page
    assert "without host, query" in page
    for odd in ("orders", " /orders ", "https://[broken/orders", "/orders\x00", "/" + "ä" * 9000):
        asked(admin, odd)


def test_which_flags_hold_is_said(admin: Client, flags: CaptureFlags) -> None:
    assert "Nothing is saved for this service" in asked(admin, "/x", service="other")
    CaptureFlags.objects.create(service_name="*", response_bodies=False)
    page = asked(admin, "/x", service="other")
    assert "those of every other service (*) hold" in page
    assert "Response bodies are switched off for the whole service." in page
    assert "Recorded, with the request body." in page
    assert "those of every other service" not in asked(admin, "/x")


def test_settings_of_the_service_take_part(admin: Client, flags: CaptureFlags) -> None:
    assert "the defaults are assumed" in asked(admin, "/health/x")
    assert "/health and all below it is in the service's EXCLUDE_PATHS" in asked(admin, "/health/x")
    rule = {"match": "regex", "pattern": "^/own", "level": "metadata"}
    told("shop", excluded=["/internal"], rules=[rule], level="request")
    assert "as a process on api-1 told" in asked(admin, "/health/x")
    assert "Recorded, with the request body." in asked(admin, "/health/x")
    assert "/internal and all below it" in asked(admin, "/internal/jobs")
    assert "Rule 1 of the service's settings (RULES) decides" in asked(admin, "/own")
    # What the admin says comes first.
    assert "Rule 1 of 2 (position 10) decides" in asked(admin, "/own/login")
    for odd in (
        '{"level": "new in a later version"}', "[" * 2900, '{"max_body_bytes": Infinity}', "7",
    ):  # fmt: skip
        CaptureProcess.objects.update(settings=odd)
        assert "the defaults are assumed" in asked(admin, "/x")
    huge = policy.Policy().base() | {"max_body_bytes": 10**2000, "sample_rate": -1e400}
    CaptureProcess.objects.update(settings=json.dumps(huge))
    assert "as a process on api-1 told" in asked(admin, "/x")


def test_a_rule_that_nobody_uses_is_named(admin: Client, flags: CaptureFlags) -> None:
    EndpointRule.objects.create(
        flags=flags, position=15, match="regex", pattern="(a+)+", level="none"
    )
    page = asked(admin, "/orders")
    assert "Rule 2 (position 15), which nobody uses: A repetition inside a repetition" in page
    assert "Rule 3 of 3 (position 20) decides" in page


def test_a_service_with_its_own_admin_knows_its_settings(
    admin: Client, settings: Any, flags: CaptureFlags
) -> None:
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "shop", "EXCLUDE_PATHS": ["/mine"]}
    page = asked(admin, "/mine")
    assert "/mine and all below it" in page
    assert "as in this service's settings" in page


def test_sampling(admin: Client, flags: CaptureFlags) -> None:
    flags.rules.update(sample_rate=0.25)
    flags.sample_rate = 0.5
    flags.save()
    page = asked(admin, "/orders")
    assert "Recorded for a share of 0.25 of all traces, with the request body." in page
    assert "Give a traceparent" in page
    assert "this trace is in the share of 0.25" in asked(admin, "/orders", traceparent=LOW)
    page = asked(admin, "/orders", traceparent=HIGH)
    assert "Not recorded: this trace is not in the share of 0.25." in page
    assert "Recorded for a share of 0.5" in asked(admin, "/x")
    assert "Recorded for a share of 0.5" in asked(admin, "/x", traceparent="nonsense")
    flags.rules.update(sample_rate=0)
    assert "the share of traces recorded is 0" in asked(admin, "/orders")


FORM_OF_TWO = FORM | {
    "rules-TOTAL_FORMS": "3",
    "rules-0-position": "20",
    "rules-1-position": "10",
    "rules-1-match": "substring",
    "rules-1-pattern": "/orders/secret",
    "rules-1-level": "none",
    # An empty row, as the form offers it.
    "rules-2-position": "10",
    "rules-2-match": "substring",
    "rules-2-pattern": "",
    "rules-2-level": "metadata",
}


def tried(admin: Client, path: str, url: str = URL + "what-if/", **change: str) -> str:
    form = FORM_OF_TWO | {"what-if-path": path} | change
    return text(admin.post(url, form))


def test_new_flags_are_tried_before_they_are_saved(admin: Client) -> None:
    page = tried(admin, "/orders/secret/1")
    assert "Rule 1 of 2 (position 10) decides" in page
    assert "Not recorded." in page
    assert "mended" not in page
    assert "Rule 2 of 2 (position 20)" in tried(admin, "/orders/1")
    assert "Give a path" in tried(admin, " ")
    assert not CaptureFlags.objects.exists()


def test_a_change_is_tried_before_it_is_saved(admin: Client, flags: CaptureFlags) -> None:
    orders, login = flags.rules.order_by("-position")
    form = {
        "rules-TOTAL_FORMS": "3", "rules-INITIAL_FORMS": "2", "sample_rate": "1",
        "rules-0-id": str(login.pk), "rules-0-position": "10", "rules-0-pattern": "/login",
        "rules-0-match": "substring", "rules-0-level": "none", "rules-0-DELETE": "on",
        "rules-1-id": str(orders.pk), "rules-1-position": "20", "rules-1-pattern": "/orders",
        "rules-1-match": "substring", "rules-1-level": "metadata",
        "rules-2-position": "20", "rules-2-pattern": "/orders/new",
        "rules-2-match": "substring", "rules-2-level": "none",
    }  # fmt: skip
    url = f"{URL}{flags.pk}/what-if/"
    before = flags.document()
    assert "There are no rules" not in tried(admin, "/login", url, **form)
    assert "None of the 2 rules is about this path" in tried(admin, "/login", url, **form)
    # Of two at one position the one that was there first comes first.
    page = tried(admin, "/orders/new", url, **form)
    assert "Rule 1 of 2 (position 20) decides" in page
    assert "no bodies" in page
    assert CaptureFlags.objects.get().document() == before
    # By GET it is what is saved.
    answer = text(admin.get(url, {"what-if-path": "/login", "fragment": "1"}))
    assert "Rule 1 of 2 (position 10)" in answer
    assert admin.get(f"{URL}999/what-if/").status_code == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rules-0-pattern": "(a+)+"}, "Rule (a+)+: Pattern: A repetition inside a repetition"),
        ({"rules-0-pattern": "("}, "Not a regular expression"),
        ({"rules-0-position": "-1"}, "Rule ^/orders/: Position: Ensure this value"),
        ({"rules-0-level": "most"}, "is not one of the available choices"),
        ({"sample_rate": "7"}, "Sample rate: Ensure this value is less than or equal to 1"),
        ({"service_name": "two words"}, "Service: Use the service's name without spaces"),
        ({"rules-TOTAL_FORMS": "x"}, "ManagementForm data is missing"),
    ],
)
def test_what_could_not_be_saved_is_said_and_takes_no_part(
    admin: Client, change: dict[str, str], said: str
) -> None:
    page = tried(admin, "/x", **change)
    assert said in page
    assert "takes no part here" in page
    # An answer is given all the same.
    assert "Recorded, with request and response bodies." in page


def test_what_is_typed_is_never_markup(admin: Client) -> None:
    evil = '/<script>alert(1)</script>"><img src=x>'
    query = {"service": evil, "what-if-path": evil, "what-if-traceparent": evil}
    form = FORM_OF_TWO | {
        "what-if-path": evil,
        "service_name": evil,
        "rules-0-match": "substring",
        "rules-0-pattern": "<script>",
        "rules-1-position": evil,
    }
    for response in (admin.get(URL + "what-if/", query), admin.post(URL + "what-if/", form)):
        page = response.content.decode()
        assert "<script>alert" not in page
        assert "<img" not in page
        assert "alert(1)" in page


def test_pages_run_no_inline_script_of_ours(admin: Client, flags: CaptureFlags) -> None:
    for url in (f"{URL}{flags.pk}/change/", URL + "what-if/", URL + "add/"):
        page = admin.get(url).content.decode()
        assert "audit_logging/flags.css" in page
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*json)[^>]*>", page)
        assert not re.search(r"<[^>]* (onclick|onsubmit|onchange|style)=", page)
    change = admin.get(f"{URL}{flags.pk}/change/").content.decode()
    assert "audit_logging/flags.js" in change
    # A form of its own, outside of the one that saves: Enter asks.
    assert change.index('data-audit-ask="captureflags_form"') > change.index("_continue")
    assert "</form>" in change[change.index("_continue") : change.index("data-audit-ask")]


@pytest.fixture
def staff(client: Client, settings: Any) -> Callable[..., Client]:
    settings.ALLOWED_HOSTS = ["testserver"]

    def login(*permissions: str) -> Client:
        user = User.objects.create_user("staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client.force_login(user)
        return client

    return login


def test_who_may_not_see_flags_may_not_ask(staff: Any, flags: CaptureFlags) -> None:
    stranger = staff("add_captureflags", "view_endpointrule")
    for url in (URL + "what-if/", f"{URL}{flags.pk}/what-if/", f"{URL}{flags.pk}/uptake/"):
        assert stranger.get(url, {"what-if-path": "/x"}).status_code == 403
    assert stranger.post(URL + "what-if/", FORM_OF_TWO).status_code == 403
    assert "data-audit-ask" not in stranger.get(URL + "add/").content.decode()


def test_who_may_only_look_may_ask(staff: Any, flags: CaptureFlags) -> None:
    viewer = staff("view_captureflags")
    assert "Rule 2 of 2" in asked(viewer, "/orders")
    assert "data-audit-ask" in viewer.get(f"{URL}{flags.pk}/change/").content.decode()
    before = flags.document()
    assert viewer.post(f"{URL}{flags.pk}/what-if/", FORM_OF_TWO).status_code == 200
    assert CaptureFlags.objects.get().document() == before


def test_who_is_not_logged_in_is_sent_to_do_so(client: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    assert client.get(URL + "what-if/").status_code == 302
    assert client.post(URL + "what-if/", FORM).status_code == 302


def test_a_foreign_site_cannot_ask_in_somebody_s_name(settings: Any, admin_user: User) -> None:
    settings.ALLOWED_HOSTS = ["testserver"]
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(URL + "what-if/", FORM_OF_TWO).status_code == 403
    assert strict.delete(URL + "what-if/").status_code in (403, 405)


def test_the_answer_is_the_policy_s(monkeypatch: pytest.MonkeyPatch, admin: Client) -> None:
    """There is no second implementation that could say something else than what happens."""
    seen: list[str] = []
    decide = policy.Policy.decide

    def watched(self: policy.Policy, path: str, traceparent: str = "") -> policy.Decision:
        seen.append(path)
        return decide(self, path, traceparent)

    monkeypatch.setattr(policy.Policy, "decide", watched)
    asked(admin, "/orders")
    assert seen == ["/orders"]
    assert what_if.requested_path("") == "/"
