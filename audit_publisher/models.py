"""What an operator decides at run time: who may publish, with which keys, and to which topics."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from audit_logging.changes import Watched

from .identity.allowed import Allowed
from .names import CONTROL, check_topic_name
from .operating.control_models import PublisherProcess as PublisherProcess
from .operating.control_models import RegionWish as RegionWish
from .operating.control_models import SpoolPage as SpoolPage
from .operating.trail import TrailLine as TrailLine


def validate_topic(name: str) -> None:
    """Refuse what cannot be a topic of audit events."""
    try:
        check_topic_name(name)
    except ValueError as error:
        raise ValidationError(str(error)) from error


#: Characters of a list of names.
MOST_NAMES_TEXT = 50_000


def validate_names(text: str) -> None:
    """Refuse what is no list of names, or more than anybody would read."""
    if len(text) > MOST_NAMES_TEXT:
        raise ValidationError(
            f"The list has {len(text):,} characters; {MOST_NAMES_TEXT:,} are allowed. Use prefixes "
            "such as shop-*."
        )
    try:
        Allowed.parse(text)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def validate_header_text(value: str) -> None:
    """Refuse what could not arrive in an HTTP header as it is."""
    if value != value.strip() or CONTROL.search(value) or "," in value or not value.isascii():
        raise ValidationError(
            "Use ASCII characters without comma, and no blanks at either end: it is compared "
            "with an HTTP header."
        )


def validate_public_key(pem: str) -> None:
    """Refuse what is not an RSA public key of 2048 bits or more, in PEM."""
    from .identity.keys import load_public_key

    try:
        load_public_key(pem)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def _without_blanks(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if line.strip())


class Consumer(Watched):
    """Somebody who publishes events: a service with its key, named by WM_CONSUMER.ID."""

    class Enforcement(models.TextChoices):
        """What a request of this consumer without a good signature gets."""

        INHERIT = "inherit", "as the installation says (AUDIT_PUBLISHER_SIGNATURE)"
        ENFORCE = "enforce", "enforce: refuse it"
        REPORT = "report", "report: take it, count it and warn"
        OFF = "off", "off: do not look"

    class Schemes(models.TextChoices):
        """How its requests may be signed."""

        ANY = "any", "the legacy signature, or message signatures"
        MESSAGE = "message", "message signatures only (RFC 9421)"

    class Replay(models.TextChoices):
        """What a request of this consumer that was taken before gets."""

        INHERIT = "inherit", "as the installation says (AUDIT_PUBLISHER_REPLAY)"
        ENFORCE = "enforce", "enforce: refuse it"
        REPORT = "report", "report: take it, count it and warn"
        OFF = "off", "off: do not look"

    consumer_id = models.CharField(
        "consumer id",
        max_length=200,
        unique=True,
        validators=[validate_header_text],
        help_text="As sent in the header WM_CONSUMER.ID.",
    )
    name = models.CharField(max_length=200, blank=True, help_text="Who this is, for people.")
    active = models.BooleanField(
        default=True, help_text="Off: every request of this consumer is refused."
    )
    enforcement = models.CharField(
        "signature",
        max_length=10,
        choices=Enforcement,
        default=Enforcement.INHERIT,
        help_text="What a request without a good signature gets.",
    )
    schemes = models.CharField(
        "kinds of signature",
        max_length=10,
        choices=Schemes,
        default=Schemes.ANY,
        help_text="The legacy signature covers neither path nor body. Once all its processes sign "
        "messages, accept nothing else, so that nobody can go back to less.",
    )
    replay = models.CharField(
        "sent again",
        max_length=10,
        choices=Replay,
        default=Replay.INHERIT,
        help_text="What a signed request gets that was taken before. Only where the signature is "
        "enforced is it refused. See docs/signatures.md.",
    )
    service_names = models.TextField(
        "services",
        blank=True,
        validators=[validate_names],
        help_text="The services it may publish for, one a line, exactly as in service_name; "
        "shop-* for all that begin with shop-, * for every service. Empty: none.",
    )
    caller_ids = models.TextField(
        "consumers in its events",
        blank=True,
        validators=[validate_names],
        help_text="Which consumer ids its events may name as their caller, one a line; * for "
        "every one, as a service needs that records who calls it. Empty: its own id only.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("consumer_id",)

    def __str__(self) -> str:
        return f"{self.name} ({self.consumer_id})" if self.name else self.consumer_id

    def clean(self) -> None:
        """Refuse a name that a terminal would act upon."""
        if CONTROL.search(self.name):
            raise ValidationError({"name": "It holds a control character."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; without the blank lines, behind which a name could hide."""
        self.service_names = _without_blanks(self.service_names)
        self.caller_ids = _without_blanks(self.caller_ids)
        super().save(*args, **kwargs)

    def services(self) -> Allowed:
        """The services it may publish for.

        :raises ValueError: the list was saved past its check and is none.
        """
        return Allowed.parse(self.service_names)

    def callers(self) -> Allowed:
        """The consumer ids that its events may name, beside its own.

        :raises ValueError: the list was saved past its check and is none.
        """
        return Allowed.parse(self.caller_ids)


class ConsumerKey(Watched):
    """One version of a consumer's public key; several may be valid while keys are rotated."""

    consumer = models.ForeignKey(Consumer, on_delete=models.CASCADE, related_name="keys")
    key_version = models.CharField(
        max_length=50,
        validators=[validate_header_text],
        help_text="As sent in the header WM_SEC.KEY_VERSION.",
    )
    public_key = models.TextField(
        help_text="RSA public key in PEM, 2048 bits or more (-----BEGIN PUBLIC KEY-----). "
        "The private key stays with the consumer.",
        validators=[validate_public_key],
    )
    not_before = models.DateTimeField(
        null=True, blank=True, help_text="Not valid earlier. Empty: valid at once."
    )
    not_after = models.DateTimeField(
        null=True, blank=True, help_text="Not valid later. Empty: until it is revoked."
    )
    revoked = models.BooleanField(
        default=False, help_text="Refused from now on, within seconds, whatever its dates say."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("consumer", "key_version")
        constraints = [
            models.UniqueConstraint(
                fields=("consumer", "key_version"),
                name="audit_publisher_key_version_once",
                violation_error_message="This consumer already has a key of this version.",
            )
        ]

    def __str__(self) -> str:
        return f"{self.consumer} key {self.key_version}"

    def told(self, name: str, value: Any) -> Any:
        """A key is told by its fingerprint."""
        return f"SHA-256 {self.fingerprint}" if name == "public_key" else value

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; a text that is not a key is refused here too, not only in the admin."""
        self.public_key = self.public_key.strip() + "\n"
        validate_public_key(self.public_key)
        super().save(*args, **kwargs)

    def clean(self) -> None:
        """Refuse a validity that ends before it begins."""
        if self.not_before and self.not_after and self.not_after <= self.not_before:
            raise ValidationError({"not_after": "It ends before it begins."})

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key, to compare with the consumer's own."""
        from .identity.keys import fingerprint

        return fingerprint(self.public_key)

    @property
    def state(self) -> str:
        """valid, revoked, expired or not yet valid."""
        now = timezone.now()
        if self.revoked:
            return "revoked"
        if self.not_after and self.not_after <= now:
            return "expired"
        if self.not_before and self.not_before > now:
            return "not yet valid"
        return "valid"


class TopicRoute(Watched):
    """Sends one service's events to a topic of its own."""

    service_name = models.CharField(
        max_length=200,
        unique=True,
        help_text="Exactly as in the events' service_name.",
    )
    topic = models.CharField(
        max_length=249,
        validators=[validate_topic],
        help_text="It must exist in every region (manage.py audit_topics --create), or events "
        "wait in the spool.",
    )
    enabled = models.BooleanField(
        default=True,
        help_text="Off: new events go to the default topic. What the topic still holds is read "
        "to its end, as long as this row exists.",
    )

    class Meta:
        ordering = ("service_name",)

    def __str__(self) -> str:
        return f"{self.service_name} → {self.topic}"

    def clean(self) -> None:
        """Refuse a service that a terminal would act upon; no event has such a name."""
        if CONTROL.search(self.service_name):
            raise ValidationError({"service_name": "It holds a control character."})
