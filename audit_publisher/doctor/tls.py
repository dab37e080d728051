"""Files of TLS and SASL: there, private, and not about to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from audit_logging.doctor.examinations import Asked, Finding, examine, warning
from audit_logging.doctor.folders import look_at_certificates, look_at_secret
from audit_logging.doctor.hiding import secrets_from

from ..conf import conf
from ..eventlog.kafka_config import load_properties

_SECRET = ("password", "secret", ".pem", "sasl.oauthbearer.config", "token")


def _files() -> dict[str, Path]:
    named = {
        "KAFKA_CONFIG_FILE": conf.KAFKA_CONFIG_FILE,
        "SECONDARY_KAFKA_CONFIG_FILE": conf.SECONDARY_KAFKA_CONFIG_FILE,
    }
    return {name: path for name, path in named.items() if path is not None}


@secrets_from
def _of_kafka() -> Iterator[str]:
    for path in _files().values():
        for name, value in load_properties(path).items():
            if any(part in name for part in _SECRET):
                yield value


@examine("tls", "Kafka")
def kafka(asked: Asked) -> Iterator[Finding]:
    """The properties files, and the files that they name."""
    if conf.problems():
        return
    for setting, path in _files().items():
        yield from look_at_secret(setting, path)
        try:
            properties = load_properties(path)
        except ImproperlyConfigured:
            # Told by the checks.
            continue
        for name in ("ssl.ca.location", "ssl.certificate.location"):
            location = properties.get(name, "")
            if location and location != "probe" and not Path(location).is_dir():
                yield from look_at_certificates(f"{name} in {path.name}", Path(location))
        if properties.get("ssl.key.location"):
            key = Path(properties["ssl.key.location"])
            yield from look_at_secret(f"ssl.key.location in {path.name}", key)
    yield from _plain(asked)


def _plain(asked: Asked) -> Iterator[Finding]:
    if not asked.deploy:
        return
    for region, url in conf.region_urls().items():
        path = conf.KAFKA_CONFIG_FILE
        if region == "secondary" and conf.SECONDARY_KAFKA_CONFIG_FILE is not None:
            path = conf.SECONDARY_KAFKA_CONFIG_FILE
        try:
            protocol = load_properties(path).get("security.protocol", "PLAINTEXT").upper()
        except ImproperlyConfigured:
            continue
        if url.startswith("kafka:") and "SSL" not in protocol:
            yield warning(
                f"The {region} region is spoken to in plain text ({protocol}).",
                "Put security.protocol=SSL or SASL_SSL into AUDIT_PUBLISHER_KAFKA_CONFIG_FILE.",
            )


@examine("tls", "schema registry")
def registry(asked: Asked) -> Iterator[Finding]:
    """Its certificate authority, and our credentials."""
    if conf.problems():
        return
    if conf.REGISTRY_CA_FILE is not None:
        yield from look_at_certificates("AUDIT_PUBLISHER_REGISTRY_CA_FILE", conf.REGISTRY_CA_FILE)
    if conf.REGISTRY_CREDENTIALS_FILE is not None:
        yield from look_at_secret(
            "AUDIT_PUBLISHER_REGISTRY_CREDENTIALS_FILE", conf.REGISTRY_CREDENTIALS_FILE
        )
    if asked.deploy and conf.REGISTRY_URL.startswith("http:"):
        yield warning(
            "The schema registry is spoken to over plain HTTP.",
            "Give AUDIT_PUBLISHER_REGISTRY_URL an https:// address.",
        )
