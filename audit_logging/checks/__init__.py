"""System checks: every misconfiguration of the capture tier has its number and its cure.

The table of them all is :mod:`.catalogue`; docs/checks.md is made of it. None raises, whatever it
meets; what asks the disk or the network runs with ``check --deploy`` alone.
"""

from __future__ import annotations

from .catalogue import CHECKS, Entry
from .configuration import (
    MIDDLEWARE,
    check_delivery,
    check_fingerprints,
    check_key,
    check_middleware,
    check_options,
    check_recording,
    check_service,
    check_sizes,
)
from .host import (
    check_broker,
    check_compression,
    check_folder,
    check_metrics,
    check_publisher,
    check_publisher_answers,
    check_tables,
)
from .running import check_asgi, check_uwsgi, report, report_serving, serving_asgi

__all__ = [
    "CHECKS",
    "MIDDLEWARE",
    "Entry",
    "check_asgi",
    "check_broker",
    "check_compression",
    "check_delivery",
    "check_fingerprints",
    "check_folder",
    "check_key",
    "check_metrics",
    "check_middleware",
    "check_options",
    "check_publisher",
    "check_publisher_answers",
    "check_recording",
    "check_service",
    "check_sizes",
    "check_tables",
    "check_uwsgi",
    "report",
    "report_serving",
    "serving_asgi",
]
