"""System checks: every misconfiguration of the publisher, numbered, with its cure."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, register

from .conf import conf


@register("audit_publisher")
def check_options(**kwargs: Any) -> list[CheckMessage]:
    """E001: an option is wrong or does not exist."""
    return [
        Error(f"{problem.setting}: {problem.message}", hint=problem.cure, id="audit_publisher.E001")
        for problem in conf.problems()
    ]
