"""Django's hook for the app."""

from django.apps import AppConfig


class AuditLoggingConfig(AppConfig):
    """The app's name, and its start-up checks."""

    name = "audit_logging"
    verbose_name = "Capture"
    audit_doctor = "audit_logging.doctor.capture"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks
        from .conf import conf

        conf.enforce()
        checks.report()
