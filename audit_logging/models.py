"""What operators set in admin: capture flags, and endpoint rules, for each service."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from .dead_letters import DeadLetter as DeadLetter
from .patterns import RuleError, compile_pattern


class CaptureFlags(models.Model):
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
        help_text="Share of traces recorded, 0 to 1. All services keep the same traces.",
    )
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["service_name"]
        verbose_name = verbose_name_plural = "capture flags"

    def __str__(self) -> str:
        return "every other service" if self.service_name == "*" else self.service_name

    def document(self) -> dict[str, Any]:
        """Return flags and rules as JSON takes them."""
        return {
            "flags": {
                "enabled": self.enabled,
                "response_bodies": self.response_bodies,
                "max_body_bytes": self.max_body_bytes,
                "sample_rate": self.sample_rate,
            },
            "rules": [
                {"match": rule.match, "pattern": rule.pattern, "level": rule.level}
                for rule in self.rules.all()
            ],
        }


class EndpointRule(models.Model):
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

    class Meta:
        ordering = ["position", "id"]

    def __str__(self) -> str:
        return f"{self.get_match_display()} {self.pattern}: {self.get_level_display()}"

    def clean(self) -> None:
        """Refuse a pattern that is wrong, or that could stall a request."""
        if self.match == self.Match.REGEX and self.pattern:
            try:
                compile_pattern(self.pattern)
            except RuleError as error:
                raise ValidationError({"pattern": str(error)}) from error
