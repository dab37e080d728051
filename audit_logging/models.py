"""What operators set in admin: capture flags, and endpoint rules, for each service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from .changes import Watched
from .dead_letters import DeadLetter as DeadLetter
from .patterns import RuleError, compile_pattern


class CaptureFlags(Watched):
    """Whether and how one service is captured. Takes effect in every process within 5 s."""

    EVERY_SERVICE = "*"

    service_name = models.CharField(
        "service",
        max_length=100,
        unique=True,
        validators=[
            RegexValidator(r"^(\*|[^\s/*]+)$", "Use the service's name without spaces, or * alone.")
        ],
        help_text="The service's SERVICE_NAME; * for every service without flags of its own.",
    )
    enabled = models.BooleanField(
        "audit on", default=True, help_text="Off: nothing is recorded; requests count as skipped."
    )
    response_bodies = models.BooleanField(
        default=True, help_text="Off: responses are recorded without their bodies."
    )
    max_body_bytes = models.PositiveIntegerField(
        "body cap",
        null=True,
        blank=True,
        validators=[MaxValueValidator(16 << 20)],
        help_text="Bytes; a larger body is recorded by its size alone. Empty: as in settings.",
    )
    sample_rate = models.FloatField(
        default=1.0,
        validators=[MinValueValidator(0.0), MaxValueValidator(1.0)],
        help_text="Share of traces recorded, 0 to 1. All services keep the same traces; a request "
        "without a trace is left to chance.",
    )
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["service_name"]
        verbose_name = verbose_name_plural = "capture flags"

    def __str__(self) -> str:
        return "every other service" if self.service_name == "*" else self.service_name

    def document(self, rules: Iterable[EndpointRule] | None = None) -> dict[str, Any]:
        """Return flags and rules as JSON takes them.

        :param rules: instead of those that are saved.
        """
        return {
            "flags": {
                "enabled": self.enabled,
                "response_bodies": self.response_bodies,
                "max_body_bytes": self.max_body_bytes,
                "sample_rate": self.sample_rate,
            },
            "rules": [rule.document() for rule in (self.rules.all() if rules is None else rules)],
        }


class EndpointRule(Watched):
    """What is recorded of requests to some paths; the first rule that matches decides."""

    class Match(models.TextChoices):
        SUBSTRING = "substring", "contains"
        REGEX = "regex", "matches the regular expression"

    class Level(models.TextChoices):
        NONE = "none", "nothing"
        METADATA = "metadata", "no bodies"
        REQUEST = "request", "request body only"
        REQUEST_RESPONSE = "request_response", "request and response bodies"

    flags = models.ForeignKey(CaptureFlags, models.CASCADE, related_name="rules")
    position = models.PositiveSmallIntegerField(
        default=10, help_text="Rules are tried from the lowest position up."
    )
    match = models.CharField("path", max_length=20, choices=Match, default=Match.SUBSTRING)
    pattern = models.CharField(max_length=200)
    level = models.CharField("record", max_length=20, choices=Level, default=Level.METADATA)
    sample_rate = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.0), MaxValueValidator(1.0)],
        help_text="Share of the traces of these paths, 0 to 1. Empty: as for the whole service.",
    )

    class Meta:
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return f"{self.get_match_display()} {self.pattern}: {self.get_level_display()}"

    def document(self) -> dict[str, Any]:
        """Return the rule as JSON takes it; a sample rate only where it has one."""
        found = {"match": self.match, "pattern": self.pattern, "level": self.level}
        return found if self.sample_rate is None else found | {"sample_rate": self.sample_rate}

    def clean(self) -> None:
        """Refuse a pattern that is wrong, or that could stall a request."""
        if self.match == self.Match.REGEX and self.pattern:
            try:
                compile_pattern(self.pattern)
            except RuleError as error:
                raise ValidationError({"pattern": str(error)}) from error


class CaptureProcess(models.Model):
    """A running process that captures, and the flags that it has in force; it says so itself.

    Written in the background, by the process or by the publisher that it asks; rows of processes
    that are silent are removed after minutes.
    """

    service_name = models.CharField("service", max_length=100)
    process = models.CharField(max_length=150, help_text="Host, process id and time of start.")
    host = models.CharField(max_length=100)
    pid = models.PositiveIntegerField("process id")
    started_at = models.DateTimeField("started")
    version = models.CharField(max_length=40, blank=True, help_text="Of django-api-audit.")
    source = models.CharField(max_length=20, help_text="Its FLAGS_SOURCE.")
    flags_etag = models.CharField(
        "flags in force", max_length=80, blank=True, help_text="Empty: those of its settings."
    )
    since = models.DateTimeField(help_text="When it was first heard to have these flags.")
    last_seen = models.DateTimeField(db_index=True)
    settings = models.TextField(blank=True, help_text="What its settings say, as JSON.")

    class Meta:
        ordering = ["service_name", "host", "pid"]
        verbose_name_plural = "capture processes"
        constraints = [
            models.UniqueConstraint(
                fields=["process", "service_name"], name="audit_logging_process_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.service_name} on {self.host}, process {self.pid}"
