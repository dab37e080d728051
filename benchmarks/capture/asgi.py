"""The service for uvicorn's workers."""

import os

from django.core.handlers.asgi import ASGIHandler

from .service import VARIABLE, Spec, configure

configure(Spec.load(os.environ[VARIABLE]))
application = ASGIHandler()
