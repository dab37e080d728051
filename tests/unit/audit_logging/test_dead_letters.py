"""Dead letters: from the file into the database, seen in admin, sent again or discarded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import DataError, OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from audit_logging import dead_letter_file, dead_letters, metrics
from audit_logging.batch import Batch
from audit_logging.breaker import Breaker
from audit_logging.conf import LoggingSettings
from audit_logging.dead_letter_file import DEAD_STREAM, Letter
from audit_logging.dead_letters import DeadLetter, Mover
from audit_logging.exceptions import Declined, DeliveryRefused, RetryLater
from audit_logging.outcome import Delivered, Refusal
from tests.unit.audit_logging.test_delivery import command

pytestmark = pytest.mark.django_db

State = DeadLetter.State


def event(n: int, **fields: Any) -> str:
    return json.dumps(
        {"request_id": f"id-{n}", "service_name": "shop", "endpoint_name": "items/<pk>"} | fields
    )


class Target:
    """A publisher that takes everything, until it is told what to say."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []
        self.answer: Callable[[list[str]], Delivered] = lambda lines: Delivered(
            stored={"published": len(lines)}
        )

    def send(self, batch: Batch) -> Delivered:
        self.sent.append(batch.lines())
        return self.answer(batch.lines())


@pytest.fixture
def target() -> Target:
    return Target()


@pytest.fixture
def mover(
    options: Callable[..., LoggingSettings], target: Target, monkeypatch: pytest.MonkeyPatch
) -> Mover:
    monkeypatch.setattr(Mover, "_seen", False)
    monkeypatch.setattr(Mover, "_said", "")
    chosen = options()
    return Mover(dead_letter_file.open_file(chosen), target, Breaker(), chosen)


def refuse(mover: Mover, *numbers: int, reason: str = "no path", status: int | None = 422) -> None:
    refused = [Refusal(event(n), reason, status) for n in numbers]
    dead_letter_file.bury(mover._file, refused)


def in_file(mover: Mover) -> int:
    return mover._file.stats(DEAD_STREAM).records


def states() -> dict[str, str]:
    return dict(DeadLetter.objects.values_list("request_id", "state"))


# -- from the file ---------------------------------------------------------------------------


def test_letters_move_from_the_file_into_the_table(mover: Mover) -> None:
    refuse(mover, 1, 2)
    assert mover.step() == 0.0
    assert in_file(mover) == 0
    letter = DeadLetter.objects.get(request_id="id-1")
    assert (letter.service_name, letter.endpoint_name) == ("shop", "items/<pk>")
    assert (letter.status, letter.reason, letter.attempts) == (422, "no path", 1)
    assert letter.state == State.WAITING
    assert json.loads(letter.event) == json.loads(event(1))
    assert mover.step() == dead_letters._IDLE


def test_a_crash_between_insert_and_settling_makes_no_twin(
    mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(mover, 1)
    settle = mover._file.settle

    def killed(*args: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(mover._file, "settle", killed)
    with pytest.raises(KeyboardInterrupt):
        mover.move()
    assert in_file(mover) == 1
    assert DeadLetter.objects.get().attempts == 1
    monkeypatch.setattr(mover._file, "settle", settle)
    mover._file._clock = lambda: 4e9  # the lease ran out
    mover.step()
    assert in_file(mover) == 0
    assert DeadLetter.objects.get().attempts == 1


def test_the_same_event_refused_again_is_the_same_letter(mover: Mover) -> None:
    refuse(mover, 1)
    mover.step()
    DeadLetter.objects.update(state=State.DELIVERED, event="")
    refuse(mover, 1, reason="still no path", status=400)
    mover.step()
    letter = DeadLetter.objects.get()
    assert (letter.attempts, letter.reason, letter.status) == (2, "still no path", 400)
    assert (letter.state, letter.event) == (State.WAITING, event(1))
    assert letter.first_seen < letter.last_seen


@pytest.mark.parametrize(
    "line",
    [
        "SDRzSUFBQUFB",
        "{not json",
        '{"request_id": "a\\u0000b", "service_name": {"x": [1]}, "endpoint_name": null}',
        json.dumps({"request_id": "x" * 500, "service_name": "y" * 500, "endpoint_name": 7}),
        "[" * 100_000,
        '{"a": ' * 100_000,
    ],
    ids=["base64", "no json", "odd types", "long", "deep", "deeper"],
)
def test_whatever_was_refused_is_kept(mover: Mover, line: str) -> None:
    dead_letter_file.bury(mover._file, [Refusal(line, "odd \x00 \udcff reason", None)])
    mover.step()
    letter = DeadLetter.objects.get()
    assert letter.event == line
    assert "\x00" not in letter.reason + letter.request_id


def test_letters_that_an_older_version_buried(mover: Mover) -> None:
    from audit_logging.spool import Record

    mover._file.append(
        DEAD_STREAM, [Record(event(1).encode(), headers=(("reason", b"no"),), timestamp=1)] * 2
    )
    mover.step()
    assert DeadLetter.objects.get().reason == "no"


def test_without_a_table_they_stay_in_the_file(
    mover: Mover, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(mover, 1)
    monkeypatch.setattr(DeadLetter._meta, "db_table", "not_migrated")
    assert mover.step() == dead_letters._AWAY
    assert mover.step() == dead_letters._AWAY
    assert in_file(mover) == 1
    said = [record for record in caplog.records if "manage.py migrate" in record.getMessage()]
    assert len(said) == 1
    monkeypatch.undo()
    assert mover.step() == 0.0
    assert in_file(mover) == 0


def test_a_database_that_fails_costs_nothing(
    mover: Mover, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(mover, 1)
    monkeypatch.setattr(
        dead_letters, "keep", lambda letter: (_ for _ in ()).throw(OperationalError("gone"))
    )
    assert mover.step() == dead_letters._AWAY
    assert "gone" in caplog.text
    monkeypatch.undo()
    # At once, not when the lease has run out.
    assert mover.step() == 0.0
    assert in_file(mover) == 0


def test_one_letter_that_the_database_does_not_take_holds_up_no_other(
    mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = dead_letters.keep

    def picky(letter: Letter) -> None:
        if letter.fields["request_id"] == "id-2":
            raise DataError("too long")
        keep(letter)

    monkeypatch.setattr(dead_letters, "keep", picky)
    refuse(mover, 1, 2, 3)
    mover.step()
    mover.step()
    assert set(states()) == {"id-1", "id-3"}
    assert in_file(mover) == 1


def test_the_table_is_bounded_and_what_is_settled_makes_room(
    mover: Mover, options: Callable[..., LoggingSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_MOST", 2)
    mover._options = options(DEAD_LETTERS_MAX=4)
    refuse(mover, *range(6))
    for _ in range(4):
        mover.step()
    assert len(states()) == 4
    assert in_file(mover) == 2
    DeadLetter.objects.filter(request_id__in=["id-0", "id-1"]).update(state=State.DISCARDED)
    mover.step()
    assert set(states()) == {"id-2", "id-3", "id-4", "id-5"}
    assert in_file(mover) == 0


# -- sent again ------------------------------------------------------------------------------


def test_sent_again_and_delivered(mover: Mover, target: Target, counted: Any) -> None:
    refuse(mover, 1, 2, 3)
    mover.step()
    assert target.sent == []
    assert len(dead_letters.resend(DeadLetter.objects.exclude(request_id="id-3"))) == 2
    assert mover.step() == 0.0
    assert target.sent == [[event(1), event(2)]]
    assert states() == {"id-1": State.DELIVERED, "id-2": State.DELIVERED, "id-3": State.WAITING}
    # In the log now, and in no further place.
    assert DeadLetter.objects.get(request_id="id-1").event == ""
    assert counted(metrics.delivered, status="published") == 2
    assert mover.step() == dead_letters._IDLE


def test_sent_again_each_by_its_own_answer(mover: Mover, target: Target) -> None:
    refuse(mover, 1, 2, 3)
    mover.step()
    dead_letters.resend(DeadLetter.objects.all())
    target.answer = lambda lines: Delivered(
        stored={"spooled": 1}, again=[lines[1]], refused=[Refusal(lines[2], "no endpoint", 422)]
    )
    mover.step()
    assert states() == {"id-1": State.DELIVERED, "id-2": State.RESEND, "id-3": State.WAITING}
    letter = DeadLetter.objects.get(request_id="id-3")
    assert (letter.reason, letter.attempts) == ("no endpoint", 2)
    # Not at once.
    assert mover.step() == dead_letters._IDLE
    assert len(target.sent) == 1
    DeadLetter.objects.update(claimed_until=None)
    target.answer = lambda lines: Delivered(stored={"published": 1})
    mover.step()
    assert target.sent[-1] == [event(2)]


def test_a_publisher_that_is_away_is_asked_later(mover: Mover, target: Target) -> None:
    def away(lines: list[str]) -> Delivered:
        raise RetryLater("away", 5)

    refuse(mover, 1)
    mover.step()
    dead_letters.resend(DeadLetter.objects.all())
    target.answer = away
    mover.step()
    assert states() == {"id-1": State.RESEND}
    assert not mover._breaker.allows
    DeadLetter.objects.update(claimed_until=None)
    mover.step()
    assert len(target.sent) == 1


@pytest.mark.parametrize(
    "error",
    [
        DeliveryRefused("answered 422: no", 422),
        Declined("answered 403", by_content=True, status=403),
    ],
)
def test_refused_once_more_it_comes_back_with_the_reason(
    mover: Mover, target: Target, error: Exception
) -> None:
    def refuses(lines: list[str]) -> Delivered:
        if len(lines) > 1:
            raise Declined("answered 403", by_content=True, status=403)
        if lines == [event(1)]:
            raise error
        return Delivered(stored={"published": 1})

    refuse(mover, 1, 2)
    mover.step()
    dead_letters.resend(DeadLetter.objects.all())
    target.answer = refuses
    mover.step()
    assert states() == {"id-1": State.WAITING, "id-2": State.DELIVERED}
    letter = DeadLetter.objects.get(request_id="id-1")
    assert letter.reason == str(error)
    assert letter.attempts == 2


def test_while_nobody_knows_us_they_wait_on(mover: Mover, target: Target) -> None:
    def stranger(lines: list[str]) -> Delivered:
        raise Declined("answered 401")

    refuse(mover, 1)
    mover.step()
    dead_letters.resend(DeadLetter.objects.all())
    target.answer = stranger
    mover.step()
    assert states() == {"id-1": State.RESEND}


def test_a_claim_of_a_dead_worker_runs_out_and_a_living_ones_holds(
    mover: Mover, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(mover, 1)
    mover.step()
    dead_letters.resend(DeadLetter.objects.all())
    assert len(mover._claim()) == 1  # and it dies
    assert mover.step() == dead_letters._IDLE
    assert target.sent == []
    monkeypatch.setattr(dead_letters, "_CLAIM", -1.0)
    DeadLetter.objects.update(claimed_until="2020-01-01T00:00:00Z")
    mover.step()
    assert target.sent == [[event(1)]]


def test_what_is_damaged_or_gone_is_not_sent_again(mover: Mover) -> None:
    dead_letter_file.bury(mover._file, [Refusal("SDRzSUFB", "damaged", None)])
    mover.step()
    assert dead_letters.resend(DeadLetter.objects.all()) == []


# -- admin -----------------------------------------------------------------------------------


@pytest.fixture
def letters(mover: Mover) -> list[DeadLetter]:
    refuse(mover, 1, 2)
    secret = {"request_body": "<script>alert(1)</script>"}
    dead_letter_file.bury(mover._file, [Refusal(event(3, **secret), "<b>no</b>", 400)])
    mover.step()
    return list(DeadLetter.objects.order_by("request_id"))


LIST = "admin:audit_logging_deadletter_changelist"


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def act(client: Client, action: str, letters: list[DeadLetter], **more: str) -> Any:
    chosen = {"action": action, "_selected_action": [letter.pk for letter in letters]}
    return client.post(reverse(LIST), chosen | more, follow=True)


def test_the_list_and_a_letter_are_shown_and_nothing_in_them_is_markup(
    admin_client: Client, letters: list[DeadLetter]
) -> None:
    page = admin_client.get(reverse(LIST) + "?q=no+path").content.decode()
    assert "id-1" in page
    assert "id-3" not in page
    assert "id-3" in admin_client.get(reverse(LIST) + "?status=400").content.decode()
    url = reverse("admin:audit_logging_deadletter_change", args=[letters[2].pk])
    page = admin_client.get(url).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert "<b>no</b>" not in page
    assert "Send again" in page
    assert 'name="_save"' not in page


def test_the_list_does_not_read_the_events(admin_client: Client, letters: list[DeadLetter]) -> None:
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(reverse(LIST))
    executed = [query["sql"] for query in queries.captured_queries]
    listing = [sql for sql in executed if '"audit_logging_deadletter"."last_seen"' in sql]
    assert listing
    assert not any('"audit_logging_deadletter"."event"' in sql for sql in listing)


def test_send_again_in_admin_is_logged(
    admin_client: Client, letters: list[DeadLetter], mover: Mover, target: Target
) -> None:
    answer = act(admin_client, "send_again", letters[:2])
    assert "2 will be sent again" in answer.content.decode()
    logged = LogEntry.objects.all()
    assert {entry.object_id for entry in logged} == {str(letter.pk) for letter in letters[:2]}
    assert {entry.get_change_message() for entry in logged} == {"Sent again."}
    mover.step()
    assert sorted(target.sent[0]) == [event(1), event(2)]
    answer = act(admin_client, "send_again", letters[:1])
    assert "1 cannot be sent again" in answer.content.decode()
    assert LogEntry.objects.count() == 2


def test_discarding_is_confirmed_and_logged(
    admin_client: Client, letters: list[DeadLetter], counted: Any
) -> None:
    page = act(admin_client, "discard", letters[:2]).content.decode()
    assert "cannot be undone" in page
    assert set(states().values()) == {State.WAITING}
    assert LogEntry.objects.count() == 0
    act(admin_client, "discard", letters[:2], post="yes")
    assert states() == {
        "id-1": State.DISCARDED,
        "id-2": State.DISCARDED,
        "id-3": State.WAITING,
    }
    assert DeadLetter.objects.get(request_id="id-1").event == ""
    assert counted(metrics.rejected, reason="discarded") == 2
    assert {entry.get_change_message() for entry in LogEntry.objects.all()} == {"Discarded."}
    assert "nothing to discard" in act(admin_client, "discard", letters[:2]).content.decode()


def test_every_letter_of_a_filtered_list_is_meant_by_select_all(
    admin_client: Client, letters: list[DeadLetter]
) -> None:
    url = reverse(LIST) + "?status=422"
    chosen = {"action": "discard", "_selected_action": [letters[0].pk], "select_across": "1"}
    page = admin_client.post(url, chosen).content.decode()
    assert "2 events will be thrown away" in page
    assert 'name="select_across" value="1"' in page
    admin_client.post(url, chosen | {"post": "yes"})
    assert states()["id-3"] == State.WAITING
    assert states()["id-2"] == State.DISCARDED


def test_who_may_only_look_can_do_nothing(letters: list[DeadLetter]) -> None:
    client = staff("view_deadletter")
    url = reverse("admin:audit_logging_deadletter_change", args=[letters[0].pk])
    page = client.get(url).content.decode()
    assert "id-1" in page
    assert "Send again" not in page
    for action in ("send_again", "discard"):
        act(client, action, letters, post="yes")
    assert set(states().values()) == {State.WAITING}


def test_nobody_deletes_a_letter_without_a_trace(
    admin_client: Client, letters: list[DeadLetter]
) -> None:
    url = reverse("admin:audit_logging_deadletter_delete", args=[letters[0].pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    act(admin_client, "delete_selected", letters, post="yes")
    assert DeadLetter.objects.count() == 3


# -- the command -----------------------------------------------------------------------------


def test_the_command_shows_and_sends_both_kinds(
    letters: list[DeadLetter], mover: Mover, settings: Any, tmp_path: Any
) -> None:
    settings.AUDIT_LOGGING = settings.AUDIT_LOGGING | {"DATA_DIR": tmp_path / "data"}
    refuse(mover, 9)
    shown = {row["spool"]: row["records"] for row in json.loads(command("--json"))}
    assert shown == {"capture": 0, "broker": 0, "delivery": 0, "dead-letters": 1, "in database": 3}
    assert "the oldest for" in command()
    rows = [json.loads(line) for line in command("dead-letters", "--json").splitlines()]
    assert {(row["place"], row["request_id"]) for row in rows} == {
        ("file", "id-9"),
        ("database", "id-1"),
        ("database", "id-2"),
        ("database", "id-3"),
    }
    assert "id-1" in command("dead-letters")
    assert "4 events will be delivered again" in command("redeliver")
    assert set(states().values()) == {State.RESEND}
    assert in_file(mover) == 0


def test_the_migration_goes_back_and_forth(transactional_db: Any) -> None:
    call_command("migrate", "audit_logging", "0001", verbosity=0)
    assert DeadLetter._meta.db_table not in connection.introspection.table_names()
    call_command("migrate", "audit_logging", verbosity=0)
    assert DeadLetter._meta.db_table in connection.introspection.table_names()
