"""ASGI application of the project."""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.integration.servers.project.settings")
application = get_asgi_application()

if settings.AUDITED:
    from audit_logging.asgi import audited

    application = audited(application)
