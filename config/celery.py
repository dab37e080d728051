"""The project's Celery app: the sink's schedule and work, and deliveries that share its broker."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

import django
from django.apps import apps

if not apps.apps_ready and not apps.loading:
    django.setup()

from django.conf import settings

from audit_logging.celery import configure

app = Celery("audit")
app.config_from_object("django.conf:settings", namespace="CELERY")
configure(app, settings.CELERY_BROKER_URL)
app.autodiscover_tasks()
