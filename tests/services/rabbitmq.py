"""RabbitMQ, a node of its own with its own Erlang port mapper, cookie and data."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from tests.services.base import HOST, POLL_SECONDS, Service
from tests.services.install import Debian, Program, on_path
from tests.services.processes import free_port, knock

PACKAGE = Debian(("rabbitmq-server",))


def _find_server() -> Path | None:
    """The server's own script: Debian's on the PATH changes the account and insists on root."""
    debian = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    return debian if debian.exists() else on_path("rabbitmq-server")()


SERVER = Program("RabbitMQ", _find_server, PACKAGE)
PORT_MAPPER = Program("Erlang's port mapper (epmd)", on_path("epmd"), PACKAGE)


class RabbitMQ(Service):
    name = "rabbitmq"
    env_name = "AUDIT_TEST_RABBITMQ_URL"
    programs = (SERVER, PORT_MAPPER)

    @property
    def url(self) -> str:
        return self.given or f"amqp://guest:guest@{HOST}:{self.port}//"

    def prepare(self) -> None:
        assert self.root
        self._mapper_port, self._peer_port = free_port(), free_port()
        cookie = self.root / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self.root / "enabled_plugins").write_text("[].\n")
        settings = {
            "listeners.tcp.1": f"{HOST}:{self.port}",
            "log.console": "true",
            "log.console.level": "info",
            # A shared or nearly full disk must not block publishers in a test.
            "disk_free_limit.absolute": "50MB",
        }
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self.root / "rabbitmq.conf").write_text(lines)

    def launch(self) -> None:
        assert self.root
        env = {
            "HOME": str(self.root),  # where Erlang looks for its cookie
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"audit{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._peer_port),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # nothing from /etc
            "RABBITMQ_CONFIG_FILE": str(self.root / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.root / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.root / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.root / "data"),
            "RABBITMQ_LOG_BASE": str(self.root / "log"),
            "RABBITMQ_PID_FILE": str(self.root / "pid"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                # epmd is ours: one that Erlang starts outlives it. Peers, too, on loopback only.
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }
        self.spawn([PORT_MAPPER.ensure()], env=env)
        self._wait_for_mapper()
        self.spawn([SERVER.ensure()], env=env)

    def _wait_for_mapper(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                knock(self._mapper_port)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def ask(self) -> None:
        from kombu import Connection

        if not self.given:
            knock(self.port)  # kombu waits two seconds before it tries a second time
        with Connection(self.url, connect_timeout=5) as connection:
            connection.connect()
