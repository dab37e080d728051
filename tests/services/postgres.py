"""PostgreSQL, one cluster of its own in a temporary folder."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.services.base import HOST, Service
from tests.services.install import Debian, Program

if TYPE_CHECKING:
    import psycopg


def _find_binaries() -> Path | None:
    """The folder with initdb and postgres: Debian's newest version, or the PATH's."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = sorted(versions, key=lambda path: float(path.parents[1].name))
    if newest:
        return newest[-1].parent
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found and shutil.which("initdb") else None


BINARIES = Program("PostgreSQL", _find_binaries, Debian(("postgresql",)))


class Postgres(Service):
    name = "postgres"
    env_name = "AUDIT_TEST_POSTGRES_URL"
    programs = (BINARIES,)
    stop_signal = signal.SIGINT  # SIGTERM would wait for every client to leave

    @property
    def url(self) -> str:
        return self.given or f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def prepare(self) -> None:
        assert self.root
        data = self._data
        data.mkdir(mode=0o700)
        if account := _account():
            self.root.chmod(0o711)  # the other account must get through to its folder
            os.chown(data, account.pw_uid, account.pw_gid)
        initdb = BINARIES.ensure() / "initdb"
        options = ["--no-sync", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        self.run([initdb, "-D", data, *options], account=account)

    def launch(self) -> None:
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # The machine may not lose power in a test. A killed server loses nothing by this.
            "fsync": "off",
            "full_page_writes": "off",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        server = BINARIES.ensure() / "postgres"
        self.spawn([server, "-D", self._data, *options], account=_account())

    def ask(self) -> None:
        with self.connect() as connection:
            connection.execute("SELECT 1")

    def connect(self) -> psycopg.Connection:
        """A connection to the maintenance database, in autocommit mode."""
        import psycopg

        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    def create_database(self, name: str) -> str:
        """An empty database of this name (one that is there is dropped first); returns its URL."""
        self.drop_database(name)
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {_quoted(name)}".encode())
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)".encode())

    @property
    def _data(self) -> Path:
        assert self.root
        return self.root / "data"


def _quoted(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ValueError(f"not a plain database name: {name!r}")
    return f'"{name}"'


def _account() -> pwd.struct_passwd | None:
    """Whom to run as: PostgreSQL refuses to be root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None
