"""Folders for what nobody else should read."""

from __future__ import annotations

from pathlib import Path


def make_private(folder: Path) -> None:
    """Create a folder, and those above it that are missing, for this user alone.

    :raises OSError: it cannot be created, or something else has its name.
    """
    # `parents=True` would create those above it for everybody.
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
