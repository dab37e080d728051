"""WSGI entry point of the example service."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "examples.inventory_api.settings")

application = get_wsgi_application()
