"""nginx in front of a publisher, as docs/running.md has it."""

from __future__ import annotations

from tests.integration.servers.kinds import NGINX
from tests.services import processes
from tests.services.base import HOST, Service

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 16m;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    {names}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{inner};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


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
        config.write_text(
            _CONFIG.format(folder=self.root, port=self.port, inner=self._inner, names=names)
        )
        self.spawn([NGINX.ensure(), "-c", config, "-p", self.root])

    def ask(self) -> None:
        processes.knock(self.port)
