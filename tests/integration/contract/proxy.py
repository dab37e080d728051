"""nginx in front of a publisher, as docs/running.md has it."""

from __future__ import annotations

from tests.integration import nginx
from tests.integration.servers.kinds import NGINX
from tests.services import processes
from tests.services.base import HOST, Service


class Proxy(Service):
    """nginx that hands everything on to a port of this host.

    :param lossy: as nginx is by default: names with dots or underscores are dropped.
    """

    name = "nginx"
    env_name = "AUDIT_TEST_NO_SUCH_ADDRESS"
    programs = (NGINX,)

    def __init__(self, inner: int, *, lossy: bool = False) -> None:
        super().__init__(own=True)
        self._inner = inner
        self._lossy = lossy

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def launch(self) -> None:
        assert self.root is not None
        config = self.root / "nginx.conf"
        names = "" if self._lossy else "ignore_invalid_headers off; underscores_in_headers on;"
        http = f"client_max_body_size 16m; {names}"
        config.write_text(nginx.config(self.root, self.port, self._inner, http=http))
        self.spawn([NGINX.ensure(), "-c", config, "-p", self.root])

    def ask(self) -> None:
        processes.knock(self.port)
