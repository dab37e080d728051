"""The schema registry: it answers, enforces BACKWARD, and knows our schema or would take it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from audit_logging.doctor.clock import compare
from audit_logging.doctor.examinations import Asked, Finding, examine, failure, ok, warning
from audit_logging.doctor.hiding import secrets_from

from .. import codec, routing
from ..conf import conf
from ..exceptions import RegistryError

#: What keeps the readers of older records: those that check against every version do too.
_BACKWARD = frozenset({"BACKWARD", "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"})


class _Refused(Exception):
    """The registry answered, and not with what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}".strip())
        self.status = status


class _Client:
    """Asks without registering anything."""

    def __init__(self) -> None:
        import urllib3

        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        if conf.REGISTRY_CREDENTIALS_FILE is not None:
            headers |= urllib3.make_headers(
                basic_auth=conf.REGISTRY_CREDENTIALS_FILE.read_text().strip()
            )
        options: dict[str, Any] = (
            {"ca_certs": str(conf.REGISTRY_CA_FILE)} if conf.REGISTRY_CA_FILE else {}
        )
        self._pool = urllib3.PoolManager(
            headers=headers, timeout=conf.REGISTRY_TIMEOUT, retries=False, **options
        )
        self.date = ""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        response = self._pool.request(
            method,
            conf.REGISTRY_URL.rstrip("/") + path,
            body=None if body is None else json.dumps(body).encode(),
        )
        self.date = response.headers.get("Date", "")
        try:
            answer = json.loads(response.data)
        except ValueError:
            answer = {}
        if response.status != 200:
            said = answer.get("message", "") if isinstance(answer, dict) else ""
            raise _Refused(response.status, str(said)[:300])
        return answer


@secrets_from
def _credentials() -> Iterator[str]:
    if conf.REGISTRY_CREDENTIALS_FILE is not None:
        text = conf.REGISTRY_CREDENTIALS_FILE.read_text().strip()
        yield text
        yield text.partition(":")[2]


@examine("registry", "schema registry", seconds=15)
def registry(asked: Asked) -> Iterator[Finding]:
    """Our schema, for each topic."""
    if conf.problems():
        return
    if not conf.REGISTRY_URL:
        yield from _embedded(asked)
        return
    import urllib3

    where = conf.REGISTRY_URL
    began = time.monotonic()
    try:
        client = _Client()
        client.ask("GET", "/subjects")
        yield ok(f"{where} answers in {(time.monotonic() - began) * 1000:.0f} ms")
        for topic in routing.topics():
            yield from _subject(client, f"{topic}-value")
    except _Refused as error:
        cure = (
            "Correct AUDIT_PUBLISHER_REGISTRY_CREDENTIALS_FILE, or its rights at the registry."
            if error.status in (401, 403)
            else "Correct AUDIT_PUBLISHER_REGISTRY_URL: it is what stands before /subjects, such "
            "as https://registry/apis/ccompat/v7."
        )
        yield failure(f"{where} answered {error}.", cure)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        yield failure(
            f"{where} does not answer ({type(error).__name__}). Schemas that are known go on.",
            "Look at AUDIT_PUBLISHER_REGISTRY_URL, REGISTRY_CA_FILE, and the network between.",
        )


def _embedded(asked: Asked) -> Iterator[Finding]:
    if asked.deploy:
        yield warning(
            "The schema registry is a folder of this host, which every publisher and sink must "
            "share.",
            "Set AUDIT_PUBLISHER_REGISTRY_URL.",
        )
    try:
        for topic in routing.topics():
            codec.schema_ids.get(topic)
    except RegistryError as error:
        yield failure(str(error), f"Look at {conf.DATA_DIR / 'schemas'}.")
    else:
        yield ok(f"{conf.DATA_DIR / 'schemas'} knows our schema, and keeps BACKWARD")


def _subject(client: _Client, subject: str) -> Iterator[Finding]:
    schema = {"schema": codec.schema_text()}
    try:
        known = client.ask("POST", f"/subjects/{subject}", schema)
    except _Refused as error:
        if error.status != 404:
            raise
        known = None
    try:
        if not _compatible(client, subject, _breaking())["is_compatible"]:
            yield ok(f"{subject}: a schema that breaks readers would be refused")
        else:
            yield _enforces_nothing(subject)
        answer = _compatible(client, subject, schema)
    except _Refused as error:
        if error.status != 404:
            raise
        yield ok(f"{subject}: no schema yet; ours is registered with the first event")
        if _level(client) not in _BACKWARD:
            yield _enforces_nothing(subject)
        return
    if known is not None:
        yield ok(f"{subject}: our schema is version {known.get('version')}, id {known.get('id')}")
    elif answer.get("is_compatible"):
        yield ok(f"{subject}: our schema is new, and will be taken")
    else:
        said = answer.get("messages") or [answer.get("reason") or ""]
        why = "; ".join(str(each) for each in said)[:300]
        yield failure(
            f"{subject}: our schema breaks the readers of the last one. {why}".strip(),
            "Run the version of the publisher that wrote the last one, or use another topic.",
        )


def _enforces_nothing(subject: str) -> Finding:
    return warning(
        f"{subject}: the registry enforces no compatibility: it would take a schema that breaks "
        "the readers of seven years.",
        f'PUT {{"compatibility": "BACKWARD"}} to {conf.REGISTRY_URL}/config',
    )


def _compatible(client: _Client, subject: str, schema: Any) -> Any:
    return client.ask(
        "POST", f"/compatibility/subjects/{subject}/versions/latest?verbose=true", schema
    )


def _breaking() -> dict[str, str]:
    """Our schema with a field that older records have not: asked about, never registered.

    What a registry says of its level is no proof: some report one, and enforce another.
    """
    schema = json.loads(codec.schema_text())
    schema["fields"].append({"name": "asked_by_audit_doctor", "type": "string"})
    return {"schema": json.dumps(schema, separators=(",", ":"))}


def _level(client: _Client) -> str:
    try:
        answer = client.ask("GET", "/config")
    except _Refused as error:
        if error.status not in (404, 405):
            raise
        return ""
    return str(answer.get("compatibilityLevel") or answer.get("compatibility") or "")


@examine("clock", "registry's")
def clock(asked: Asked) -> Iterator[Finding]:
    """Certificates and tokens are as good as clocks are."""
    if conf.problems() or not conf.REGISTRY_URL:
        return
    import urllib3

    from audit_logging.publisher_client import epoch

    client = _Client()
    before = time.time()
    try:
        client.ask("GET", "/subjects")
    except (_Refused, urllib3.exceptions.HTTPError, OSError):
        # What is wrong with it is told elsewhere.
        pass
    theirs = epoch(client.date)
    if theirs is not None:
        yield from compare(
            "the registry",
            theirs,
            before,
            time.time(),
            ahead=conf.SIGNATURE_FUTURE_SKEW,
            behind=conf.SIGNATURE_MAX_AGE,
        )
