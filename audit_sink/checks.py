"""System checks of the sink; numbers are never used twice.

E001  an option of AUDIT_SINK is wrong
W001  two sites would write to one bucket
W002  is not given any more: a lease outlasts a slow bucket
"""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register

from .conf import bucket_key, conf


@register("audit_sink")
def check_options(**kwargs: Any) -> list[CheckMessage]:
    """Every option has a value that can work."""
    return [
        Error(f"{problem.setting}: {problem.message}", hint=problem.cure, id="audit_sink.E001")
        for problem in conf.problems()
    ]


@register(Tags.database)
def check_buckets(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """No two sites share a bucket; runs where the database is asked (`check --database`)."""
    from django.db import DatabaseError

    from .models import Site

    if not databases:
        return []
    owners: dict[str, list[str]] = {}
    try:
        for site in Site.objects.all():
            owners.setdefault(bucket_key(site.bucket_url), []).append(site.code)
    except DatabaseError:
        # Not migrated yet.
        return []
    return [
        Warning(
            f"The sites {', '.join(codes)} share the bucket {url}.",
            hint="Give each site a bucket of its own at /admin/audit_sink/site/.",
            id="audit_sink.W001",
        )
        for url, codes in owners.items()
        if len(codes) > 1
    ]
