"""Redis, with an append-only file so that a restart finds its data."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.services.base import HOST, Service
from tests.services.install import Debian, Program, on_path

SERVER = Program("Redis", on_path("redis-server", "valkey-server"), Debian(("redis-server",)))


class Redis(Service):
    name = "redis"
    env_name = "AUDIT_TEST_REDIS_URL"
    programs = (SERVER,)

    @property
    def url(self) -> str:
        return self.given or f"redis://{HOST}:{self.port}/0"

    def url_for(self, db: int) -> str:
        """The URL of one numbered database (0 to 15)."""
        return urlsplit(self.url)._replace(path=f"/{db}").geturl()

    def launch(self) -> None:
        network = ["--bind", HOST, "--port", str(self.port)]
        storage = ["--dir", str(self.root), "--appendonly", "yes", "--save", ""]
        # Else a kill may cost what was acknowledged in the last two seconds.
        storage += ["--appendfsync", "always"]
        self.spawn([SERVER.ensure(), *network, *storage])

    def ask(self) -> None:
        import redis

        with redis.Redis.from_url(self.url, socket_timeout=2) as client:
            client.ping()
