"""fake-gcs-server, a Google Cloud Storage emulator that honours preconditions."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING

from tests.services.base import HOST, Service
from tests.services.install import GoModule, Program

if TYPE_CHECKING:
    from google.cloud import storage

# Older ones ignore if_generation_match on some upload paths, so none is taken from the PATH,
# where a version cannot be told.
MODULE = GoModule("github.com/fsouza/fake-gcs-server", "v1.56.1", "gcs")
SERVER = Program("fake-gcs-server", MODULE.find, MODULE)
PROJECT = "audit-test"


class Gcs(Service):
    name = "gcs"
    env_name = "AUDIT_TEST_GCS_URL"
    programs = (SERVER,)

    @property
    def url(self) -> str:
        return (self.given or f"http://{HOST}:{self.port}").rstrip("/")

    def launch(self) -> None:
        assert self.root
        network = ["-scheme", "http", "-host", HOST, "-port", str(self.port)]
        # Upload sessions are answered with absolute addresses made from these.
        network += ["-external-url", self.url, "-public-host", self.address]
        storage = ["-backend", "filesystem", "-filesystem-root", str(self.root / "data")]
        self.spawn([SERVER.ensure(), *network, *storage, "-log-level", "warn"])

    def ask(self) -> None:
        address = f"{self.url}/storage/v1/b?project={PROJECT}"
        urllib.request.urlopen(address, timeout=2).close()

    def client(self) -> storage.Client:
        """A google-cloud-storage client that needs no credentials."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        return storage.Client(
            project=PROJECT,
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.url},
        )

    def create_bucket(self, name: str) -> storage.Bucket:
        return self.client().create_bucket(name)
