"""Apicurio Registry, spoken to through its Confluent-compatible API; schemas live in memory."""

from __future__ import annotations

import json
import urllib.request

from tests.services.base import HOST, Service
from tests.services.install import JAVA, Maven, Program

ARTEFACTS = Maven("registry")
APPLICATION = Program("Apicurio Registry", ARTEFACTS.find, ARTEFACTS)


class Registry(Service):
    """`url` is the base that a Confluent client takes. A restart forgets every schema."""

    name = "registry"
    env_name = "AUDIT_TEST_REGISTRY_URL"
    programs = (JAVA, APPLICATION)

    @property
    def url(self) -> str:
        return (self.given or f"http://{HOST}:{self.port}/apis/ccompat/v7").rstrip("/")

    def launch(self) -> None:
        runner = next(APPLICATION.ensure().glob("apicurio-registry-app-*-runner.jar"))
        address = [f"-Dquarkus.http.host={HOST}", f"-Dquarkus.http.port={self.port}"]
        # Small and quick to start; it is never the part that a test measures.
        small = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        self.spawn([JAVA.ensure(), *small, *address, "-jar", runner])

    def ask(self) -> None:
        self.request("GET", "/subjects")

    def settle(self) -> None:
        # It begins with NONE, where every schema is welcome; ours must refuse what breaks readers.
        self.request("PUT", "/config", {"compatibility": "BACKWARD"})

    def request(self, method: str, path: str, body: object = None) -> object:
        """One JSON call below `url`; raises urllib's HTTPError for an error status."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
