"""Background jobs of the project: a Celery app of its own, whose jobs cause audited requests."""

import os

import django
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integration.servers.project.settings")

django.setup()

# The audit's embedded broker serves here as any broker would.
TRANSPORT_ALIASES.setdefault("durable", "audit_logging.broker:Transport")

app = Celery("jobs", broker=f"durable://{os.environ['SERVERS_ROOT']}/jobs.sqlite3")
app.conf.task_ignore_result = True
app.conf.worker_enable_remote_control = False
app.conf.broker_connection_retry_on_startup = True


@app.task(name="ask")
def ask(case: str) -> None:
    """A request to the project itself, in a child of the worker."""
    from django.test import Client

    Client().get("/items/1", {"case": case})
