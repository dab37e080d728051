"""What the demo prepares before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

from examples.demo.prepare import Places


def test_the_demo_s_folders_are_the_owner_s_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        places = Places(tmp_path / "demo")
        places.claim()
        places.make(keep=False)
    finally:
        os.umask(before)
    for folder in (places.root, places.service, places.audit, places.logs):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
    places.root.chmod(0o755)
    places.claim()
    assert places.root.stat().st_mode & 0o777 == 0o700
