"""ASGI entry point of the example service."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.inventory_api.settings")

application = get_asgi_application()
