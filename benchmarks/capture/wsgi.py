"""The service for gunicorn's workers."""

import os

from django.core.handlers.wsgi import WSGIHandler

from .service import VARIABLE, Spec, configure

configure(Spec.load(os.environ[VARIABLE]))
application = WSGIHandler()
