"""Chance of our own: a service that has seeded Python's must not see its sequence moved on."""

from __future__ import annotations

import random

__all__ = ["chance"]

chance = random.SystemRandom()
