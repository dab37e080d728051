"""ASGI entry point of the runnable project."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

django_application = get_asgi_application()

# It needs Django to be set up.
from audit_publisher.asgi import front  # noqa: E402

application = front(django_application)
