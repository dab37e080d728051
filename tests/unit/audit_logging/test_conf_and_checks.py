"""Every misconfiguration is named, with its cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from django.core.exceptions import ImproperlyConfigured

from audit_logging import conf
from audit_logging.conf import LoggingSettings
from audit_logging.options import AppSettings, option, readable_file, url_of
from config.environment import ProjectSettings


class Demo(AppSettings):
    prefix = "DEMO_APP"
    foreign_prefixes = ("DEMO_APP_OTHER_",)

    NAME: str = option("x", "A name.")
    COUNT: int = option(3, "A count.", unit="events", minimum=1, maximum=10)
    SHARE: float = option(0.5, "A share.", minimum=0, maximum=1)
    ON: bool = option(True, "A switch.")
    MODE: Literal["fast", "safe"] = option("safe", "A mode.")
    LIST: tuple[str, ...] = option(("a",), "A list.")
    FOLDER: Path = option(lambda: Path("/default"), "A folder.")
    MAYBE: Path | None = option(None, "Perhaps a file.")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("NAME", " y ", "y"),
        ("COUNT", "10", 10),
        ("SHARE", "1", 1.0),
        ("ON", "Off", False),
        ("ON", "1", True),
        ("MODE", "fast", "fast"),
        ("LIST", "a, b,,c ", ("a", "b", "c")),
        ("FOLDER", "/tmp/x", Path("/tmp/x")),
        ("MAYBE", "", None),
        ("MAYBE", "/k", Path("/k")),
    ],
)
def test_values_from_the_environment(name: str, text: str, value: Any) -> None:
    demo = Demo({f"DEMO_APP_{name}": text})
    assert getattr(demo, name) == value
    assert demo.problems() == []


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("DEMO_APP_COUNT", "many", "'many' is not an integer. Give an integer (events)."),
        ("DEMO_APP_COUNT", "0", "0 is too small. Use 1 or more."),
        ("DEMO_APP_COUNT", "11", "11 is too large. Use 10 or less."),
        ("DEMO_APP_SHARE", "nan", "'nan' is not a number. Give a number."),
        ("DEMO_APP_SHARE", "inf", "'inf' is not a number. Give a number."),
        ("DEMO_APP_ON", "perhaps", "'perhaps' is not on or off. Use true or false."),
        ("DEMO_APP_MODE", "save", "Did you mean 'safe'? Use fast | safe."),
        ("DEMO_APP_CUONT", "3", "There is no such option. Did you mean DEMO_APP_COUNT?"),
        ("DEMO_APP_QQQ", "3", "There is no such option. Remove it, or see docs/configuration.md"),
    ],
)
def test_a_wrong_variable_is_named_with_its_cure(variable: str, text: str, said: str) -> None:
    demo = Demo({variable: text, "DEMO_APP_OTHER_X": "not ours"})
    (problem,) = demo.problems()
    assert problem.setting == variable
    assert said in str(problem)
    with pytest.raises(ImproperlyConfigured, match=variable):
        demo.enforce()


@pytest.mark.parametrize(
    ("configured", "said"),
    [
        ([], "DEMO_APP: It is not a dict. Make it a dict."),
        ({"COUNT": "3"}, "DEMO_APP[\"COUNT\"]: '3' is not a number."),
        ({"COUNT": True}, "True is not a number"),
        ({"COUNT": 1.5}, "1.5 is not an integer"),
        ({"COUNT": float("inf")}, "inf is not an integer"),
        ({"ON": "true"}, "'true' is not on or off"),
        ({"NAME": 3}, "3 is not a string. Put it in quotes."),
        ({"NAME": None}, "It has no value."),
        ({"LIST": 3}, "3 is not a list"),
        ({"FOLDER": 3}, "3 is not a path"),
        ({"CUONT": 3}, 'DEMO_APP["CUONT"]: There is no such option. Did you mean COUNT?'),
    ],
)
def test_a_wrong_key_of_the_dict_is_named_with_its_cure(
    settings: Any, configured: Any, said: str
) -> None:
    settings.DEMO_APP = configured
    (problem,) = Demo({}).problems()
    assert said in str(problem)


def test_the_environment_wins_over_the_dict_and_that_over_the_default(settings: Any) -> None:
    settings.DEMO_APP = {"COUNT": 4, "MODE": "fast"}
    demo = Demo({"DEMO_APP_COUNT": "5"})
    assert demo.COUNT == 5
    assert demo.MODE == "fast"
    assert Path("/default") == demo.FOLDER


def test_reading_a_wrong_value_says_what_is_wrong() -> None:
    with pytest.raises(ImproperlyConfigured, match="DEMO_APP_COUNT: 'x' is not an integer"):
        _ = Demo({"DEMO_APP_COUNT": "x"}).COUNT


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(ImproperlyConfigured) as raised:
        Demo({"DEMO_APP_COUNT": "x", "DEMO_APP_ON": "x", "DEMO_APP_Q": "x"}).enforce()
    assert len(str(raised.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SERVICE_NAME", "two words", "not a service name"),
        ("SERVICE_NAME", "a/b", "not a service name"),
        ("PUBLISHER_URL", "publisher:8001", "Give http(s)://host:port"),
        ("PUBLISHER_URL", "http://u:p@h/", "Use the signing key instead"),
        ("BROKER_URL", "redsi://localhost", "'redsi' is not supported"),
        ("BROKER_URL", "amqp://h:70000//", "The port is no number from 1 to 65535"),
        ("BROKER_URL", "durable://b.sqlite3", "Give the file's whole path"),
        ("EXCLUDE_PATHS", "health", "does not begin with a slash"),
        ("FLAGS_REFRESH_SECONDS", "6", "too large"),
        ("OVERFLOW", "dorp", "Did you mean 'drop'?"),
    ],
)
def test_the_capture_tiers_own_rules(
    options: Callable[..., LoggingSettings], name: str, value: str, said: str
) -> None:
    (problem,) = options(**{name: value}).problems()
    assert problem.setting == f"AUDIT_LOGGING_{name}"
    assert said in str(problem)


def test_settings_changed_in_a_test_are_seen(settings: Any) -> None:
    settings.AUDIT_LOGGING = {"SERVICE_NAME": "changed"}
    assert conf.conf.SERVICE_NAME == "changed"


def test_the_embedded_broker_lies_in_the_data_folder(
    options: Callable[..., LoggingSettings], tmp_path: Path, settings: Any
) -> None:
    settings.AUDIT_LOGGING = {}
    assert options(DATA_DIR=tmp_path).broker_url() == f"durable://{tmp_path}/broker.sqlite3"
    assert options(BROKER_URL="redis://h/0").broker_url() == "redis://h/0"


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP_ADDR", "WORKER_SERVICE_PORT"],
)
def test_what_kubernetes_tells_of_a_service_is_no_misspelt_option(name: str) -> None:
    environ = {f"AUDIT_LOGGING_{name}": "tcp://10.0.0.1:80"}
    assert LoggingSettings(environ=environ).problems() == []


def test_an_address_whose_package_is_missing_is_told_how_to_get_it() -> None:
    check = url_of({"redis": ("no_such_module_here", "production")})
    with pytest.raises(ValueError, match=r"pip install 'django-api-audit\[production\]'"):
        check("redis://user:secret@host")
    check("")


def test_an_address_that_is_none_does_not_show_its_password() -> None:
    with pytest.raises(ValueError, match="It is no address") as refused:
        url_of({"redis": ("", "")})("user:secret@host")
    assert "secret" not in str(refused.value)


def test_a_file_that_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        readable_file(tmp_path / "missing")
    (tmp_path / "there").touch()
    readable_file(tmp_path / "there")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SECRET_KEY_FILE", "/no/such/file", "cannot be read: No such file"),
        ("DATABASE_URL", "postgresql://u:hush@db:abc/audit", "It cannot be read"),
        ("DATABASE_URL", "mysql://u:hush@db/audit", "'mysql' is not supported"),
        ("BROKER_URL", "kafka://h", "'kafka' is not supported"),
        ("ALLOWED_HOSTS", "https://audit.example.com", "without scheme"),
    ],
)
def test_the_projects_own_rules(name: str, value: str, said: str) -> None:
    (problem,) = ProjectSettings({f"AUDIT_{name}": value}).problems()
    assert problem.setting == f"AUDIT_{name}"
    assert said in str(problem)
    assert "hush" not in str(problem)


def test_an_empty_secret_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\n")
    project = ProjectSettings({"AUDIT_SECRET_KEY_FILE": str(tmp_path / "key")})
    with pytest.raises(ImproperlyConfigured, match=r"AUDIT_SECRET_KEY_FILE: .* is empty"):
        project.secret_key()
