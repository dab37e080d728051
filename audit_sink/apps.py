"""Django's hook for the app."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AuditSinkConfig(AppConfig):
    """The app's name, its start-up checks, and its schedule after `migrate`."""

    name = "audit_sink"
    verbose_name = "Sink"
    audit_doctor = "audit_sink.doctor"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from . import checks  # noqa: F401
        from .beat import make_schedule
        from .conf import conf

        conf.enforce()
        post_migrate.connect(make_schedule, sender=self, dispatch_uid="audit_sink.make_schedule")
