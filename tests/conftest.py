"""What every test run shares."""

from __future__ import annotations

from typing import Any

import pytest
from django.apps import AppConfig, apps
from django.core import serializers
from django.db.models.signals import post_migrate
from pytest_django import DjangoDbBlocker

pytest_plugins = ["tests.services.fixtures"]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """The database, in which rows that migrations made come back after it was emptied.

    A test with transactions of its own ends with a flush: without this, tests that run after it in
    the same process would miss those rows.
    """
    with django_db_blocker.unblock():
        made = {
            model: serializers.serialize("json", model._base_manager.order_by("pk"))
            for model in apps.get_models()
            if model._meta.managed and model._base_manager.exists()
        }

    def restore(sender: AppConfig, using: str, **kwargs: Any) -> None:
        # Django itself brings back content types and permissions, before this.
        for model in sender.get_models():
            if model in made and not model._base_manager.using(using).exists():
                for each in serializers.deserialize("json", made[model], using=using):
                    each.save(using=using)

    # A flush ends with this signal, too.
    post_migrate.connect(restore, weak=False, dispatch_uid="tests.restore")
