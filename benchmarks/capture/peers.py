"""An environment for the peers, outside the checkout and made once for each set of versions."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.services.install import announce, cache_dir, locked

LIST = Path(__file__).with_name("peers.txt")


def python() -> Path:
    """Return the interpreter that has the peers, and the Django that this one has."""
    import django

    pinned = [f"Django=={django.__version__}", *LIST.read_text().splitlines()]
    key = hashlib.sha256(f"{sys.version}\n{pinned}".encode()).hexdigest()[:12]
    folder = cache_dir() / f"benchmark-peers-{key}"
    done = folder / ".done"
    with locked("benchmark-peers"):
        if not done.exists():
            announce(f"installing the peers into {folder}")
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            packages = [line for line in pinned if not line.startswith("#")]
            subprocess.run(
                [folder / "bin" / "pip", "install", "--quiet", *packages],
                check=True,
            )
            done.touch()
    return folder / "bin" / "python"


def versions() -> dict[str, str]:
    """Each peer's pinned version."""
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)
