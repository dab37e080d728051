"""The configuration of nginx in front of a server under test."""

from __future__ import annotations

from pathlib import Path

from tests.services.base import HOST

_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    {http}
    server {{
        listen {host}:{port};
        location / {{
            proxy_pass http://{host}:{inner};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection "";
            {location}
        }}
    }}
}}
"""


def config(folder: Path, port: int, inner: int, *, http: str = "", location: str = "") -> str:
    """Return the text of a configuration.

    :param port: where nginx listens.
    :param inner: the port that it hands everything on to.
    :param http: further directives for all servers.
    :param location: further directives for what is handed on.
    """
    return _CONFIG.format(
        folder=folder, host=HOST, port=port, inner=inner, http=http, location=location
    )
