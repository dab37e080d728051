"""Django's hook for the app."""

from django.apps import AppConfig


class AuditPublisherConfig(AppConfig):
    """The app's name, and its start-up checks."""

    name = "audit_publisher"
    verbose_name = "Publisher"
    audit_doctor = "audit_publisher.doctor"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401  # registered by being imported
        from .conf import conf
        from .operating import trail

        trail.connect()
        conf.enforce()
