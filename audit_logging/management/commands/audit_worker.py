"""`manage.py audit_worker`: a Celery worker that delivers what this service captured."""

from __future__ import annotations

import logging
import os
import sys
from argparse import ArgumentTypeError, RawDescriptionHelpFormatter
from importlib import import_module
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit_logging.conf import conf

_EPILOG = """
It takes batches from the broker (AUDIT_LOGGING BROKER_URL, queue CELERY_QUEUE) and posts them to
the publisher, or appends them to the event log with DELIVERY=kafka. A batch is acknowledged when
it is durable; one that a killed worker had in hand goes out again after a while.

SIGTERM ends it after the deliveries in hand (exit code 0); a second one ends it at once.
Exit codes: 0 stopped on request, 1 wrong options or settings, or the worker failed.

Every other setting of Celery's: celery -A audit_logging worker --help
"""


def _autoscale(text: str) -> tuple[int, int]:
    try:
        least, most = sorted(int(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not two numbers. Give MAX,MIN: 10,6") from None
    if least < 1:
        raise ArgumentTypeError("Keep one process at least.")
    return most, least


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number above 0.")
    return int(text)


class Command(BaseCommand):
    """Starts a worker of deliveries with the configured defaults."""

    help = (
        "Deliver what this service captured: a Celery worker that keeps WORKERS_MIN processes and "
        "grows to WORKERS_MAX."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """As Django's, with a text after the options."""
        kwargs.setdefault("epilog", _EPILOG)
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        if not issubclass(parser.formatter_class, RawDescriptionHelpFormatter):
            base = parser.formatter_class
            parser.formatter_class = type("Formatter", (RawDescriptionHelpFormatter, base), {})
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        """What a worker may have that is not in the settings."""
        parser.add_argument(
            "--pool",
            choices=["prefork", "threads", "solo"],
            default="prefork",
            help="prefork: processes (the default); threads: lighter, and of a fixed number; "
            "solo: one delivery at a time, in this process",
        )
        number = parser.add_mutually_exclusive_group()
        number.add_argument(
            "--concurrency",
            type=_positive,
            metavar="N",
            help="a fixed number of deliveries at the same time",
        )
        number.add_argument(
            "--autoscale",
            type=_autoscale,
            metavar="MAX,MIN",
            help=f"processes, by how much waits (default: {conf.WORKERS_MAX},{conf.WORKERS_MIN})",
        )
        parser.add_argument("--queue", help="default: CELERY_QUEUE")
        parser.add_argument(
            "--hostname", metavar="NAME", help="the worker's name, with %%h for the host's"
        )
        parser.add_argument(
            "--loglevel",
            type=str.upper,
            choices=["DEBUG", "INFO", "WARNING", "ERROR"],
            default="INFO",
            help="DEBUG also has two lines for each batch (default: INFO)",
        )
        parser.add_argument(
            "--metrics-port",
            type=_positive,
            metavar="PORT",
            help="serve Prometheus metrics of all its processes on this port",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the worker until it is told to stop."""
        if conf.DELIVERY == "direct":
            raise CommandError(
                'DELIVERY is "direct": the service delivers by itself, and needs no worker.'
            )
        if conf.WORKERS_MIN > conf.WORKERS_MAX:
            raise CommandError(
                f"WORKERS_MIN ({conf.WORKERS_MIN}) is more than WORKERS_MAX ({conf.WORKERS_MAX})."
            )
        if options["metrics_port"]:
            self._serve_metrics(options["metrics_port"])
        # Not at the top: help and mistakes need no Celery.
        from celery.utils.nodenames import default_nodename, host_format

        from audit_logging.celery import app
        from audit_logging.delivery import get_deliverer

        try:
            # What cannot deliver says so now, and not with the first batch in hand.
            get_deliverer()
        except Exception as error:
            raise CommandError(str(error)) from error
        if options["loglevel"] != "DEBUG":
            # Two lines for each batch, which say nothing that the metrics do not.
            for name in ("celery.worker.strategy", "celery.app.trace"):
                logging.getLogger(name).setLevel(logging.WARNING)
        worker = app.Worker(
            hostname=host_format(
                default_nodename(options["hostname"] or f"audit-{os.getpid()}@%h")
            ),
            pool_cls=options["pool"],
            queues=[options["queue"] or conf.CELERY_QUEUE],
            loglevel=options["loglevel"],
            **self._size(options),
        )
        worker.start()
        sys.exit(worker.exitcode or 0)

    @staticmethod
    def _size(options: dict[str, Any]) -> dict[str, Any]:
        if options["pool"] == "solo":
            if options["autoscale"] or (options["concurrency"] or 1) > 1:
                raise CommandError("The solo pool delivers one batch at a time.")
            return {"concurrency": 1}
        if options["pool"] == "threads":
            if options["autoscale"]:
                raise CommandError("Threads are of a fixed number. Use --concurrency.")
            return {"concurrency": options["concurrency"] or conf.WORKERS_MAX}
        if options["concurrency"]:
            return {"concurrency": options["concurrency"]}
        most, least = options["autoscale"] or (conf.WORKERS_MAX, conf.WORKERS_MIN)
        return {"concurrency": least, "autoscale": (most, least)}

    @staticmethod
    def _serve_metrics(port: int) -> None:
        try:
            monitoring = import_module("audit_logging.monitoring")
        except ImportError as error:
            raise CommandError(f"Metrics cannot be served: {error}") from error
        try:
            monitoring.start(port)
        except Exception as error:
            raise CommandError(f"Metrics cannot be served on port {port}: {error}") from error
