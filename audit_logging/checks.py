"""System checks: every misconfiguration of the capture tier, and its cure.

E001 an option has a wrong value, or does not exist
E002 SERVICE_NAME is missing
E003 the private key cannot be used
E004 the middleware is not installed
W001 deliveries are not signed
W002 the spool's folder cannot be written
"""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from .conf import conf
from .exceptions import AuditLoggingError

MIDDLEWARE = "audit_logging.middleware.AuditMiddleware"


@register("audit_logging")
def check_options(**kwargs: Any) -> list[CheckMessage]:
    """E001: wrong or unknown options."""
    return [
        Error(f"{problem.setting}: {problem.message}", hint=problem.cure, id="audit_logging.E001")
        for problem in conf.problems()
    ]


@register("audit_logging")
def check_service(**kwargs: Any) -> list[CheckMessage]:
    """E002, E004: a service that would not be audited."""
    if conf.problems() or not conf.ENABLED:
        return []
    found: list[CheckMessage] = []
    installed = MIDDLEWARE in getattr(settings, "MIDDLEWARE", [])
    if not conf.SERVICE_NAME:
        found.append(
            Error(
                "AUDIT_LOGGING has no SERVICE_NAME.",
                hint='Add "SERVICE_NAME": "<your service>" to AUDIT_LOGGING.',
                id="audit_logging.E002",
            )
        )
    # The publisher and the sink install the app for its models and its tasks, not to be audited.
    if not installed and "audit_publisher" not in settings.INSTALLED_APPS:
        found.append(
            Error(
                "The audit middleware is not installed: nothing will be captured.",
                hint=f'Put "{MIDDLEWARE}" first in MIDDLEWARE.',
                id="audit_logging.E004",
            )
        )
    return found


@register("audit_logging")
def check_key(**kwargs: Any) -> list[CheckMessage]:
    """E003, W001: the signing key."""
    if conf.problems() or MIDDLEWARE not in getattr(settings, "MIDDLEWARE", []):
        return []
    if conf.PRIVATE_KEY_PATH is None:
        return [
            Warning(
                "Deliveries are not signed.",
                hint="Set AUDIT_LOGGING PRIVATE_KEY_PATH and CONSUMER_ID, and register the public "
                "key with the publisher (manage.py audit_key add).",
                id="audit_logging.W001",
            )
        ]
    from .signing import Signer

    try:
        Signer(conf.CONSUMER_ID, conf.KEY_VERSION, conf.PRIVATE_KEY_PATH).headers(0)
    except AuditLoggingError as error:
        return [
            Error(
                str(error),
                hint="PRIVATE_KEY_PATH must name an unencrypted RSA private key in PEM that this "
                "process can read; CONSUMER_ID must be the id it is registered under.",
                id="audit_logging.E003",
            )
        ]
    return []


@register("audit_logging", deploy=True)
def check_spool(**kwargs: Any) -> list[CheckMessage]:
    """W002: nowhere to spool."""
    if conf.problems():
        return []
    folder = conf.DATA_DIR
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if os.access(folder, os.W_OK):
        return []
    return [
        Warning(
            f"{conf.DATA_DIR} cannot be written: events that overflow will be dropped.",
            hint="Give the service's user write access, or set AUDIT_LOGGING_DATA_DIR.",
            id="audit_logging.W002",
        )
    ]
