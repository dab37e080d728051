"""Chance of our own: a service that has seeded Python's must not see its sequence moved on."""

from __future__ import annotations

import os
import random

__all__ = ["chance"]

#: For nothing that has to be secret.
chance = random.Random()  # noqa: S311

if hasattr(os, "register_at_fork"):
    # Else all workers of a service would sample the same requests.
    os.register_at_fork(after_in_child=chance.seed)
