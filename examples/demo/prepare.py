"""What must be there before the demo starts: packages, ports, a folder, keys, a database.

As a program, ``python -m examples.demo.prepare``, it sets up the project's database: one process
for all of it, because starting Django takes longer than any of the steps.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .processes import DemoError

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "admin"
#: The example service's consumer id and key version at the publisher.
CONSUMER = "inventory-api"
KEY_VERSION = "1"

_PACKAGES = (
    *("django", "rest_framework", "celery", "django_celery_beat", "gunicorn", "rich", "urllib3"),
    *("cryptography", "fastavro", "msgspec", "pyarrow", "pyruhvro", "duckdb", "whitenoise"),
    *("prometheus_client", "drf_spectacular", "dj_database_url"),
)


def shown(path: Path) -> Path:
    """`path` as a person in the checkout reads it."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


@dataclass(frozen=True)
class Places:
    """Where the demo keeps what it makes.

    ::

        root/  .audit-demo     says that this folder may be emptied by the demo
               demo.pid        who runs here
               logs/           one file a process
               keys/           the example service's key pair
               inventory-api/  the example service's own data: broker, spool
               audit/          the publisher's and the sink's: database, event log, buckets
    """

    root: Path

    @property
    def run_file(self) -> Path:
        """Says who runs here."""
        return self.root / "demo.pid"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.root / "logs"

    @property
    def private_key(self) -> Path:
        """Signs the example service's deliveries."""
        return self.root / "keys" / f"{CONSUMER}.pem"

    @property
    def public_key(self) -> Path:
        """Registered with the publisher."""
        return self.root / "keys" / f"{CONSUMER}.pub.pem"

    @property
    def service(self) -> Path:
        """The example service's own data."""
        return self.root / "inventory-api"

    @property
    def audit(self) -> Path:
        """The publisher's and the sink's data."""
        return self.root / "audit"

    @property
    def _marker(self) -> Path:
        return self.root / ".audit-demo"

    def claim(self) -> None:
        """Make the folder, or make sure that it is one of ours.

        :raises DemoError: it holds something that the demo did not make, or cannot be made.
        """
        try:
            if self.root.exists() and any(self.root.iterdir()) and not self._marker.exists():
                raise DemoError(
                    f"{self.root} holds files that are not the demo's, which would empty it. "
                    "Name another folder with --data-dir."
                )
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Also one that an earlier version made: it holds people's requests.
            self.root.chmod(0o700)
            self._marker.touch()
        except OSError as error:
            raise DemoError(
                f"The folder {self.root} cannot be used: {error.strerror}. "
                "Name another with --data-dir."
            ) from error

    def make(self, keep: bool) -> None:
        """Make the folders inside; without `keep`, forget earlier runs first."""
        if not keep:
            for folder in (self.service, self.audit):
                shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.logs, ignore_errors=True)
        for folder in (self.logs, self.service, self.audit):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def check_packages() -> None:
    """Make sure that everything the demo runs is installed.

    :raises DemoError: naming what is missing.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"Not installed: {', '.join(missing)}. `make demo` sets up an environment with all "
            "of it; by hand it is `pip install -r requirements/demo.in`."
        )


def make_keys(places: Places) -> None:
    """Make the example service's RSA pair, readable by its owner alone, unless it exists."""
    if places.private_key.exists() and places.public_key.exists():
        return
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    places.private_key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    places.private_key.unlink(missing_ok=True)
    places.private_key.touch(mode=0o600)
    places.private_key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    places.public_key.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def set_up_database() -> None:
    """Migrate, register the example service's public key, and make the administrator.

    The key's path and the password come from DEMO_PUBLIC_KEY and DEMO_PASSWORD: a command line
    can be read by everybody on the machine.
    """
    import django
    from django.core.management import call_command

    django.setup()
    from django.contrib.auth import get_user_model

    call_command("migrate", verbosity=0, interactive=False)
    call_command(
        *("audit_key", "add", "--consumer", CONSUMER, "--key-version", KEY_VERSION, "--replace"),
        *("--public-key", os.environ["DEMO_PUBLIC_KEY"], "--service", CONSUMER),
        # It records who calls it.
        *("--caller", "*"),
    )
    user, _ = get_user_model().objects.get_or_create(
        username=ADMIN, defaults={"is_staff": True, "is_superuser": True}
    )
    user.set_password(os.environ["DEMO_PASSWORD"])
    user.save()


if __name__ == "__main__":
    set_up_database()
