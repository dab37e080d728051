"""A test that empties the database takes nothing from the tests after it."""

from __future__ import annotations

import pytest
from django.core.management import call_command

from audit_sink.models import Site

from .conftest import SITES


@pytest.mark.django_db(transaction=True)
def test_what_migrations_made_is_there_after_a_flush() -> None:
    def sites() -> dict[str, str]:
        return dict(Site.objects.values_list("code", "site_id"))

    assert sites() == SITES
    Site.objects.filter(code="US").update(site_id="changed")
    # As each test with transactions of its own ends.
    call_command("flush", verbosity=0, interactive=False)
    assert sites() == SITES
    Site.objects.get(code="US", takes_unlabelled=True)
