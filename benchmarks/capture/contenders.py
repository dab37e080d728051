"""Who is measured: this project and its peers, each as its own README says to install it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Settings = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """One recorder.

    :param name: as users know it.
    :param bodies: it records the bodies of request and response.
    :param apps: what goes into INSTALLED_APPS.
    :param middleware: what goes into MIDDLEWARE.
    :param outermost: the middleware goes first; last, if not.
    :param settings: further settings, from the folder that the service may write to.
    :param drf: the view is one of Django REST framework's, as it records no other's bodies.
    """

    name: str
    bodies: bool
    middleware: str
    apps: tuple[str, ...] = ()
    outermost: bool = False
    settings: Callable[[Path], Settings] = field(default=lambda folder: {})
    drf: bool = False
    ours: bool = False


def _ours(folder: Path) -> Settings:
    return {"AUDIT_LOGGING": {"SERVICE_NAME": "benchmark", "DATA_DIR": str(folder / "audit")}}


def _drf_api_logger(folder: Path) -> Settings:
    return {
        "DRF_API_LOGGER_DATABASE": True,
        "DRF_API_LOGGER_EXCLUDE_KEYS": [
            "password",
            "token",
            "access",
            "refresh",
            "secret",
            "api_key",
        ],
        "DRF_API_LOGGER_MAX_REQUEST_BODY_SIZE": 32768,
        "DRF_API_LOGGER_MAX_RESPONSE_BODY_SIZE": 65536,
    }


def _request_logging(folder: Path) -> Settings:
    # Its README logs to the console; ours is a file, as a production service's often is.
    return _logging("django.request", "DEBUG", {"class": "logging.StreamHandler"})


def _requestlogs(folder: Path) -> Settings:
    handler = {
        "level": "INFO",
        "class": "logging.FileHandler",
        "filename": str(folder / "requestlogs.log"),
    }
    return {
        **_logging("requestlogs", "INFO", handler),
        "REST_FRAMEWORK": {"EXCEPTION_HANDLER": "requestlogs.views.exception_handler"},
    }


def _logging(logger: str, level: str, handler: dict[str, Any]) -> Settings:
    return {
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"there": handler},
            "loggers": {logger: {"handlers": ["there"], "level": level, "propagate": False}},
        }
    }


OURS = Contender(
    name="django-api-audit",
    bodies=True,
    apps=("audit_logging",),
    middleware="audit_logging.middleware.AuditMiddleware",
    outermost=True,
    settings=_ours,
    ours=True,
)

PEERS = (
    Contender(
        name="django-request-logging",
        bodies=True,
        middleware="request_logging.middleware.LoggingMiddleware",
        settings=_request_logging,
    ),
    Contender(
        name="django-requestlogs",
        bodies=True,
        middleware="requestlogs.middleware.RequestLogsMiddleware",
        settings=_requestlogs,
        drf=True,
    ),
    Contender(
        name="drf-api-logger",
        bodies=True,
        apps=("drf_api_logger",),
        middleware="drf_api_logger.middleware.api_logger_middleware.APILoggerMiddleware",
        settings=_drf_api_logger,
    ),
    Contender(
        name="django-easy-audit",
        bodies=False,
        apps=("easyaudit",),
        middleware="easyaudit.middleware.easyaudit.EasyAuditMiddleware",
    ),
    Contender(
        name="django-silk",
        bodies=True,
        apps=("silk",),
        middleware="silk.middleware.SilkyMiddleware",
        outermost=True,
    ),
)

ALL = (OURS, *PEERS)


def contender(name: str) -> Contender:
    """Return the contender of that name."""
    return next(each for each in ALL if each.name == name)
