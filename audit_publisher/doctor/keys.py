"""Who may publish: consumers and their public keys."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from django.utils import timezone

from audit_logging.doctor.examinations import (
    Asked,
    Finding,
    examine,
    failure,
    of_checks,
    ok,
    warning,
)

from ..checks import check_signatures
from ..conf import conf

#: A key that ends within this, with none to follow it, is told of.
SOON = timedelta(days=14)


@examine("keys", "consumers")
def consumers(asked: Asked) -> Iterator[Finding]:
    """Every consumer has a key that is valid, today and in two weeks."""
    if conf.problems():
        return
    from ..models import Consumer

    if asked.deploy:
        yield from of_checks(check_signatures())
    known = list(Consumer.objects.filter(active=True).prefetch_related("keys"))
    if not known:
        report = failure if conf.SIGNATURE == "enforce" and asked.deploy else warning
        yield report(
            "No consumer is registered"
            + (": nobody may publish." if conf.SIGNATURE == "enforce" else "."),
            "Register each service's public key: manage.py audit_key add --help",
        )
        return
    good = 0
    soon = timezone.now() + SOON
    for consumer in known:
        keys = [key for key in consumer.keys.all() if key.state == "valid"]
        lasting = [key for key in keys if key.not_after is None or key.not_after > soon]
        if not keys:
            yield warning(
                f"{consumer} has no valid key: its requests are refused.",
                "Register one (manage.py audit_key add), or switch the consumer off in admin.",
            )
        elif not lasting:
            last = max(key.not_after for key in keys if key.not_after is not None)
            yield warning(
                f"The last valid key of {consumer} ends at {last:%F %R} UTC.",
                "Register the next version now: both are valid until then.",
            )
        else:
            good += 1
    yield ok(
        f"{good} of {len(known)} consumers have a key that is valid for two weeks more; "
        f"signatures: {conf.SIGNATURE}"
    )
