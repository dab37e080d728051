"""Every misconfiguration has its number, names its setting, and says what to do."""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from django.core.checks import CheckMessage, registry, run_checks
from django.db import connection
from django.http import HttpResponse

from audit_logging import checks, signing
from audit_logging.batch import pack
from audit_logging.checks import host, running
from audit_logging.middleware import AuditMiddleware
from audit_logging.spool import DurableQueue, Record
from config import docs

OTHER = "tests.unit.audit_logging.test_checks.Other"
GZIP = "django.middleware.gzip.GZipMiddleware"


class Other:
    """A middleware that is none of ours."""


class Subclass(AuditMiddleware):
    """A service's own."""


def messages() -> list[CheckMessage]:
    """What ``check --deploy`` finds of ours, with each message in good form."""
    found = run_checks(tags=["audit_logging"], include_deployment_checks=True)
    for message in found:
        assert message.hint
        assert re.fullmatch(r"audit_logging\.[EWI]\d{3}", message.id or "")
    return found


def found() -> dict[str, CheckMessage]:
    return {(message.id or "").rpartition(".")[2]: message for message in messages()}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    private = {
        "rsa": rsa.generate_private_key(65537, 2048),
        "small": rsa.generate_private_key(65537, 1024),  # noqa: S505
        "ec": ec.generate_private_key(ec.SECP256R1()),
    }
    plain: Any = serialization.NoEncryption()
    locked: Any = serialization.BestAvailableEncryption(b"secret")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    contents = {name: key.private_bytes(*form, plain) for name, key in private.items()}
    contents["encrypted"] = private["rsa"].private_bytes(*form, locked)
    contents["public"] = (
        private["rsa"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    contents["nonsense"] = b"nonsense"
    contents["certificate"] = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    for name, content in contents.items():
        path = folder / f"{name}.pem"
        path.write_bytes(content)
        path.chmod(0o600)
    return {name: folder / f"{name}.pem" for name in contents}


class Publisher(ThreadingHTTPServer):
    """What answers at PUBLISHER_URL; it keeps the paths and headers that it was asked with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answer = (200, b"{}")
        self.asked: list[tuple[str, dict[str, str]]] = []


class Answer(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with Publisher() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def service(
    settings: Any, tmp_path: Path, keys: dict[str, Path], publisher: Publisher
) -> Callable[..., Any]:
    """A service with nothing wrong; call it with options that are."""
    settings.INSTALLED_APPS = ["audit_logging"]
    settings.MIDDLEWARE = [checks.MIDDLEWARE]
    settings.ASGI_APPLICATION = None
    good = {
        "SERVICE_NAME": "shop",
        "DATA_DIR": tmp_path / "a" / "b",
        "PRIVATE_KEY_PATH": keys["rsa"],
        "CONSUMER_ID": "shop",
        "PUBLISHER_URL": publisher.url,
        "FLAGS_SOURCE": "publisher",
        "DEAD_LETTERS": "file",
    }

    def configure(**options: Any) -> Any:
        settings.AUDIT_LOGGING = good | options
        return settings

    configure()
    return configure


def test_a_service_with_nothing_wrong(service: Callable[..., Any]) -> None:
    assert found() == {}


def test_nothing_is_said_where_the_audit_is_off(service: Callable[..., Any]) -> None:
    service(ENABLED=False, SERVICE_NAME="", PRIVATE_KEY_PATH=None).MIDDLEWARE = []
    assert found() == {}


def test_the_publisher_installs_the_app_without_being_audited(service: Callable[..., Any]) -> None:
    settings = service(SERVICE_NAME="", PRIVATE_KEY_PATH=None)
    settings.MIDDLEWARE = []
    settings.INSTALLED_APPS = [
        "django.contrib.contenttypes", "audit_logging", "audit_publisher",
    ]  # fmt: skip
    assert found() == {}


@pytest.mark.parametrize(
    ("options", "number", "said"),
    [
        ({"BUFFER_SIZ": 3}, "E001", 'AUDIT_LOGGING["BUFFER_SIZ"]'),
        ({"SERVICE_NAME": ""}, "E002", "SERVICE_NAME"),
        ({"CONSUMER_ID": ""}, "E010", "CONSUMER_ID"),
        ({"BUFFER_BYTES": 1000}, "E013", "BUFFER_BYTES (1,000) is smaller than MAX_BODY_BYTES"),
        (
            {"SPOOL_MAX_BYTES": 1_000_000, "MAX_EVENT_BYTES": 900_000},
            "E014",
            "SPOOL_MAX_BYTES (1,000,000) is smaller than BATCH_BYTES",
        ),
        ({"EXCLUDE_PATHS": ["/"]}, "E017", "EXCLUDE_PATHS"),
        ({"WORKERS_MIN": 11}, "E019", "WORKERS_MIN (11) is larger than WORKERS_MAX (10)"),
        ({"PRIVATE_KEY_PATH": None}, "W001", "PRIVATE_KEY_PATH"),
        ({"SERVICE_NAME": "My_Service"}, "W004", "'My_Service'"),
        ({"PUBLISHER_URL": "http://publisher:8001"}, "W006", "plain HTTP to publisher"),
        ({"PUBLISHER_URL": "http://127.0.0.1:8001"}, "W007", "PUBLISHER_URL"),
        ({"BROKER_URL": "memory://"}, "W009", "BROKER_URL"),
        ({"BATCH_BYTES": 20_000}, "W015", "BATCH_BYTES (20,000) is smaller than MAX_EVENT_BYTES"),
        (
            {"MAX_BODY_BYTES": 3_000_000},
            "W016",
            "MAX_BODY_BYTES (3,000,000) is larger than MAX_EVENT_BYTES",
        ),
        ({"OVERFLOW": "drop", "BUFFER_SIZE": 3}, "W017", "BUFFER_SIZE is 3"),
        ({"SHUTDOWN_SECONDS": 0.5}, "W018", "SHUTDOWN_SECONDS (0.5)"),
        ({"FLAGS_SOURCE": "settings", "LEVEL": "none"}, "W019", "LEVEL is 'none'"),
        ({"FLAGS_SOURCE": "settings", "SAMPLE_RATE": 0}, "W019", "SAMPLE_RATE is 0"),
    ],
)
def test_wrong_options(
    service: Callable[..., Any], options: dict[str, Any], number: str, said: str
) -> None:
    service(**options)
    # Nobody answers at these addresses.
    assert set(found()) - {"W023"} == {number}
    assert said in found()[number].msg


@pytest.mark.parametrize("url", ["http://localhost:9", "http://127.0.0.2:9", "http://[::1]:9"])
def test_plain_http_on_this_host_is_nobody_elses_to_read(
    service: Callable[..., Any], url: str
) -> None:
    service(PUBLISHER_URL=url)
    assert set(found()) <= {"W023"}


def test_every_wrong_option_is_told_with_its_own_cure(
    service: Callable[..., Any],
) -> None:
    service(BUFFER_SIZ=3, SERVICE_NAME="a b")
    hints = [message.hint for message in messages()]
    assert "Did you mean BUFFER_SIZE?" in hints
    assert len(hints) == 2


def test_e011_the_brokers_library_is_missing(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    service(BROKER_URL="redis://user:hush@host")
    message = found()["E011"]
    assert "BROKER_URL" in message.msg
    assert "hush" not in f"{message.msg} {message.hint}"


# -- middleware --------------------------------------------------------------------------------


def test_e004_no_middleware(service: Callable[..., Any]) -> None:
    service().MIDDLEWARE = []
    assert set(found()) == {"E004"}


def test_e005_no_app(service: Callable[..., Any]) -> None:
    service().INSTALLED_APPS = ["django.contrib.contenttypes"]
    assert set(found()) == {"E005"}


def test_e006_twice(service: Callable[..., Any]) -> None:
    service().MIDDLEWARE = [checks.MIDDLEWARE, OTHER, checks.MIDDLEWARE]
    assert set(found()) == {"E006"}
    assert "2 times: 1 and 3" in found()["E006"].msg


def test_w003_what_stands_before_it_is_named_with_what_is_lost(service: Callable[..., Any]) -> None:
    security = "django.middleware.security.SecurityMiddleware"
    service().MIDDLEWARE = [security, GZIP, OTHER, checks.MIDDLEWARE]
    assert set(found()) == {"W003"}
    said = found()["W003"].msg
    assert f"{security} (not recorded: redirects to HTTPS), {OTHER}." in said
    assert GZIP not in said


def test_i001_compression_inside_the_audit(service: Callable[..., Any]) -> None:
    service().MIDDLEWARE = [checks.MIDDLEWARE, GZIP]
    assert set(found()) == {"I001"}
    service().MIDDLEWARE = [GZIP, checks.MIDDLEWARE]
    assert found() == {}


def test_a_subclass_is_the_audit_middleware_too(service: Callable[..., Any]) -> None:
    service().MIDDLEWARE = [OTHER, f"{__name__}.Subclass", "no.such.Middleware"]
    assert set(found()) == {"W003"}


# -- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("encrypted", "E007", "is encrypted"),
        ("ec", "E008", "not an RSA key"),
        ("public", "E008", "is a public key"),
        ("certificate", "E008", "is a certificate"),
        ("nonsense", "E008", "no private key in PEM"),
        ("small", "E009", "has 1024 bits; 2048 are needed"),
        ("missing", "E003", "No such file"),
    ],
)
def test_keys(
    service: Callable[..., Any], keys: dict[str, Path], name: str, number: str, said: str
) -> None:
    path = keys["rsa"].with_name(f"{name}.pem")
    service(PRIVATE_KEY_PATH=path)
    assert set(found()) == {number}
    assert said in found()[number].msg
    assert str(path) in found()[number].msg


def test_e003_a_key_that_this_user_may_not_read(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert "Permission denied" in found()["E003"].msg


def test_w005_a_key_for_everybody(
    service: Callable[..., Any], keys: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(keys["rsa"].read_bytes())
    path.chmod(0o644)
    service(PRIVATE_KEY_PATH=path)
    assert set(found()) == {"W005"}
    assert "0644" in found()["W005"].msg
    path.chmod(0o440)
    assert found() == {}


def test_a_folder_of_keys(
    service: Callable[..., Any], keys: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    service(PRIVATE_KEY_PATH=folder)
    assert set(found()) == {"E003"}
    for version, name in (("1", "rsa"), ("2", "small")):
        (folder / f"{version}.pem").write_bytes(keys[name].read_bytes())
        (folder / f"{version}.pem").chmod(0o600)
    assert set(found()) == {"E009"}
    assert "2.pem" in found()["E009"].msg


def test_the_key_of_fingerprints(service: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.key"
    service(FINGERPRINT_KEY_PATH=path)
    assert set(found()) == {"E018"}
    assert "No such file" in found()["E018"].msg
    path.write_text("too short\n")
    path.chmod(0o600)
    assert set(found()) == {"E018"}
    assert "holds 9 bytes; 16 are needed" in found()["E018"].msg
    path.write_text("0123456789abcdef")
    assert found() == {}
    path.chmod(0o604)
    assert set(found()) == {"W005"}
    assert "FINGERPRINT_KEY_PATH" in found()["W005"].msg


# -- delivery ----------------------------------------------------------------------------------


def test_e012_kafka_without_the_publishers_app(service: Callable[..., Any]) -> None:
    service(DELIVERY="kafka")
    assert set(found()) == {"E012"}
    assert "audit_publisher" in found()["E012"].msg
    service(DELIVERY="kafka").INSTALLED_APPS = [
        "django.contrib.contenttypes", "audit_logging", "audit_publisher",
    ]  # fmt: skip
    assert found() == {}


def test_w008_a_broker_that_refuses(service: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    service(BROKER_URL=f"redis://:hush@127.0.0.1:{port}/0")
    assert set(found()) == {"W008"}
    said = found()["W008"].msg
    assert f"redis://127.0.0.1:{port}: " in said
    assert "refused" in said
    assert "hush" not in said


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_w008_a_broker_that_says_nothing(service: Callable[..., Any], scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        service(BROKER_URL=f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")
        assert set(found()) == {"W008"}


def test_direct_delivery_asks_no_broker(service: Callable[..., Any]) -> None:
    service(BROKER_URL="redis://127.0.0.1:1", DELIVERY="direct")
    assert found() == {}


# -- the folder --------------------------------------------------------------------------------


def folder_of(service: Callable[..., Any]) -> Path:
    folder: Path = service().AUDIT_LOGGING["DATA_DIR"]
    folder.mkdir(parents=True, mode=0o700)
    return folder


def test_w002_nowhere_to_spool_whatever_the_mode_allows(service: Callable[..., Any]) -> None:
    service(DATA_DIR="/proc/audit/data")
    assert "DATA_DIR: /proc/audit/data cannot be written: " in found()["W002"].msg


def test_w002_a_file_where_the_folder_should_be(
    service: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("")
    assert set(found()) == {"W002"}


def test_w002_the_brokers_own_file(service: Callable[..., Any], tmp_path: Path) -> None:
    service(BROKER_URL="durable:///proc/audit/broker.sqlite3")
    assert "BROKER_URL: /proc/audit/broker.sqlite3 cannot" in found()["W002"].msg
    service(BROKER_URL=f"durable://{tmp_path}")
    assert "it is a folder" in found()["W002"].msg
    service(BROKER_URL=f"durable://{tmp_path}/a%20b/broker.sqlite3")
    assert found() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("durable://broker.sqlite3", "durable:///srv/b.sqlite3"),
        ("durable://var/broker.sqlite3", "durable:///srv/b.sqlite3"),
        ("durable:///", "durable:///srv/b.sqlite3"),
        ("amqp://user:hush@host:99999//", "The port is no number from 1 to 65535"),
        ("amqp://user:hush@host:port//", "The port is no number from 1 to 65535"),
        ("amqp://a:5672//;amqp://b:0//", "The port is no number from 1 to 65535"),
    ],
)
def test_e001_an_address_of_a_broker_that_cannot_be(
    service: Callable[..., Any], url: str, said: str
) -> None:
    service(BROKER_URL=url)
    assert set(found()) == {"E001"}
    assert said in found()["E001"].msg + str(found()["E001"].hint)
    assert "hush" not in found()["E001"].msg


def test_brokers_with_several_addresses_are_fine(service: Callable[..., Any]) -> None:
    service(BROKER_URL="amqp://a:5672//;amqp://b:5672//", DELIVERY="direct")
    assert found() == {}


# -- the publisher -----------------------------------------------------------------------------


def test_the_publisher_is_asked_by_name_and_signature(
    service: Callable[..., Any], publisher: Publisher
) -> None:
    assert found() == {}
    ((path, headers),) = publisher.asked
    assert path == "/v1/config/shop"
    assert {signing.CONSUMER_ID, signing.SIGNATURE} <= set(headers)


def test_a_plain_check_asks_no_publisher(service: Callable[..., Any], publisher: Publisher) -> None:
    run_checks(tags=["audit_logging"])
    assert publisher.asked == []


@pytest.mark.parametrize(
    ("status", "number"),
    [(404, "W024"), (401, "W025"), (403, "W026"), (500, "W023"), (302, "W023")],
)
def test_what_the_publisher_answers_has_its_own_cure(
    service: Callable[..., Any], publisher: Publisher, status: int, number: str
) -> None:
    publisher.answer = (status, b'{"title": "said so"}')
    assert set(found()) == {number}
    assert f"answered {status}: " in found()[number].msg
    assert "said so" in found()[number].msg


def test_w023_a_publisher_that_refuses_or_says_nothing(service: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        service(PUBLISHER_URL=url)
        assert set(found()) == {"W023"}
    assert set(found()) == {"W023"}
    assert url in found()["W023"].msg


def mounts(tmp_path: Path, *kinds: tuple[str, str]) -> Path:
    path = tmp_path / "mountinfo"
    lines = [
        f"{number} 1 0:{number} / {point} rw,relatime shared:1 - {kind} source rw"
        for number, (point, kind) in enumerate(kinds)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("kind", "number"),
    [("nfs4", "E015"), ("fuse.gcsfuse", "E015"), ("tmpfs", "W010"), ("overlay", "W011")],
)
def test_file_systems_that_keep_nothing(
    service: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: str,
) -> None:
    (tmp_path / "a").mkdir()
    table = mounts(tmp_path, ("/", "ext4"), (str(tmp_path / "a"), kind))
    monkeypatch.setattr(host.file_system, "__defaults__", (table,))
    assert set(found()) == {number}
    assert f"lies on {kind}" in found()[number].msg


def test_the_innermost_and_latest_mount_counts(tmp_path: Path) -> None:
    inner = tmp_path / "with space"
    inner.mkdir()
    point = str(inner).replace(" ", "\\040")
    table = mounts(tmp_path, (point, "ext4"), (point, "tmpfs"), (str(tmp_path), "xfs"), ("/", "x"))
    assert host.file_system(inner, table) == "tmpfs"
    assert host.file_system(tmp_path, table) == "xfs"
    assert host.file_system(tmp_path / "without", table) == "xfs"
    assert host.file_system(Path("/etc"), table) == "x"
    assert host.file_system(inner, tmp_path / "no such file") == ""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no tmpfs to look at")
def test_a_real_tmpfs_is_known() -> None:
    assert host.file_system(Path("/dev/shm")) == "tmpfs"


def test_w012_the_disk_is_nearly_full(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = types.SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert set(found()) == {"W012"}
    usage.free = 256 << 20
    assert found() == {}


def test_w013_another_services_events_lie_in_it(service: Callable[..., Any]) -> None:
    folder = folder_of(service)
    queue = DurableQueue(folder / "capture-spool.sqlite3")
    queue.append("capture", [Record(pack(['{"service_name":"shop"}']))])
    assert found() == {}
    queue.append("capture", [Record(pack(['{"service_name":"till"}'])), Record(b"damaged")])
    queue.close()
    assert set(found()) == {"W013"}
    assert "that of till too" in found()["W013"].msg


def test_w013_another_services_flags_lie_in_it(service: Callable[..., Any]) -> None:
    folder = folder_of(service)
    (folder / "flags.json").write_text('{"service": "till"}')
    assert set(found()) == {"W013"}
    (folder / "flags.json").write_text("[[[")
    assert found() == {}


def test_w014_others_may_write_it_or_read_its_files(service: Callable[..., Any]) -> None:
    folder = folder_of(service)
    folder.chmod(0o755)
    assert found() == {}
    folder.chmod(0o777)
    assert "0777" in found()["W014"].msg
    folder.chmod(0o700)
    (folder / "dead-letters.sqlite3").touch()
    (folder / "dead-letters.sqlite3").chmod(0o640)
    assert set(found()) == {"W014"}
    assert "dead-letters.sqlite3" in found()["W014"].msg


def test_a_check_makes_nothing_in_the_folder(service: Callable[..., Any], tmp_path: Path) -> None:
    found()
    assert not (tmp_path / "a").exists()


# -- database, metrics, server -------------------------------------------------------------------


@pytest.mark.django_db
def test_w020_tables_that_are_not_there(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    service(FLAGS_SOURCE="database")
    assert found() == {}
    monkeypatch.setattr(connection.introspection, "table_names", lambda cursor, **kwargs: [])
    assert set(found()) == {"W020"}
    assert "audit_logging_" in found()["W020"].msg


def test_w020_a_database_that_does_not_answer(service: Callable[..., Any]) -> None:
    service(FLAGS_SOURCE="database")
    # Outside of a test that may use it, it refuses.
    assert "cannot be asked" in found()["W020"].msg


def test_w021_nowhere_to_keep_metrics(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert found() == {}
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "missing"))
    assert set(found()) == {"W021"}


def test_w022_a_check_that_fails_is_told_and_ends_nothing(
    service: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> Path:
        raise RuntimeError("odd disk")

    monkeypatch.setattr(host, "nearest", broken)
    assert set(found()) == {"W022"}
    assert "check_folder failed: RuntimeError: odd disk" in found()["W022"].msg


IN_ORDER = b"unix_signal:15 gracefully_kill_them_all"


@pytest.mark.parametrize(
    ("attributes", "wrong"),
    [
        ({"opt": {}, "has_threads": 0}, True),
        ({"opt": {}, "has_threads": 1}, False),
        ({"opt": {}}, True),
        ({"opt": {"enable-threads": True}}, False),
        ({"opt": {"enable-threads": b"true"}}, False),
        ({"opt": {"enable-threads": b"false"}}, True),
        ({"opt": {b"threads": [b"1", b"4"]}}, False),
        ({"opt": {"gevent": b"100"}}, False),
        ({}, False),
    ],
)
def test_e016_uwsgi_without_threads(
    service: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    attributes: dict[str, Any],
    wrong: bool,
) -> None:
    attributes.get("opt", {})["hook-master-start"] = IN_ORDER
    monkeypatch.setitem(sys.modules, "uwsgi", types.SimpleNamespace(**attributes))
    assert set(found()) == ({"E016"} if wrong else set())
    monkeypatch.setattr(running, "_reported", False)
    with caplog.at_level(logging.ERROR, "audit_logging"):
        running.report()
        running.report()
    assert caplog.text.count("enable-threads = true") == int(wrong)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, "in the middle of requests"),
        ({"die-on-term": True}, "in the middle of requests"),
        ({"hook-master-start": [b"unix_signal:1 reload", IN_ORDER]}, ""),
        ({"hook-master-start": IN_ORDER, "skip-atexit": b"false"}, ""),
        ({"hook-master-start": IN_ORDER, "skip-atexit": True}, "skip-atexit."),
        ({b"hook-master-start": IN_ORDER, b"skip-atexit-teardown": b"1"}, "skip-atexit-teardown."),
    ],
)
def test_w028_uwsgi_ends_workers_without_their_exit_handlers(
    service: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[Any, Any],
    wrong: str,
) -> None:
    uwsgi = types.SimpleNamespace(opt=options, has_threads=1)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    assert set(found()) == ({"W028"} if wrong else set())
    assert not wrong or wrong in found()["W028"].msg


# -- the table ---------------------------------------------------------------------------------


def test_every_number_is_used_once_and_in_order() -> None:
    numbers = [entry.number for entry in checks.CHECKS]
    assert len(set(numbers)) == len(numbers)
    for kind in "EWI":
        own = [number for number in numbers if number.startswith(kind)]
        assert own == [f"{kind}{index + 1:03}" for index in range(len(own))]


def test_every_entry_is_found_by_some_check_and_every_check_has_an_entry() -> None:
    folder = Path(checks.__file__).parent
    sources = "\n".join(
        path.read_text() for path in folder.glob("*.py") if path.name != "catalogue.py"
    )
    used = set(re.findall(r'"([EWI]\d{3})"', sources))
    assert used == {entry.number for entry in checks.CHECKS}


def test_every_check_is_registered_and_asks_outside_with_deploy_alone() -> None:
    ours = {
        function.__name__: getattr(function, "tags", ())
        for function in registry.registry.get_checks(include_deployment_checks=True)
        if function.__module__.startswith("audit_logging.")
    }
    assert set(ours) == {name for name in checks.__all__ if name.startswith("check_")}
    always = {
        function.__name__
        for function in registry.registry.get_checks()
        if function.__module__.startswith("audit_logging.")
    }
    outside = {name for name in vars(host) if name.startswith("check_")}
    assert not always & outside


def test_every_check_has_its_section_in_the_documentation() -> None:
    page = (docs.DOCS / "checks.md").read_text()
    assert page == docs.render_checks(), "Run: make docs"
    sections = re.findall(r"^## audit_logging\.(\w+)$", page, re.MULTILINE)
    assert sections == [entry.number for entry in checks.CHECKS]


def test_a_process_whose_app_is_missing_says_so_in_its_log(
    service: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service().INSTALLED_APPS = ["django.contrib.contenttypes"]
    monkeypatch.setattr(running, "_reported", False)
    AuditMiddleware(lambda request: HttpResponse())
    assert "audit_logging.E005" in caplog.text
