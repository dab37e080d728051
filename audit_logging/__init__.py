"""Capture every API interaction of a Django service, without slowing it."""

__version__ = "0.1.0"
