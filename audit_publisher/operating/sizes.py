"""Sizes for people: 2 MB is 2,000,000 bytes, as in the settings."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes in the largest unit that fits, such as "2 MB" or "190.5 MB"."""
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    number = float(count)
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if round(number, 1) < 1000:
            return f"{number:.1f}".removesuffix(".0") + f" {unit}"
    return f"{number / 1000:.1f}".removesuffix(".0") + " TB"
