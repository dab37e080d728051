"""What an examination is, what it finds, and the list of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from django.apps import apps
from django.core.checks import ERROR, CheckMessage

Level = Literal["ok", "warning", "FAIL"]

#: Every group, in the order in which people would look.
GROUPS = (
    "settings",
    "folders",
    "tls",
    "database",
    "broker",
    "queues",
    "registry",
    "topics",
    "buckets",
    "keys",
    "publisher",
    "clock",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    :ivar message: what is so; never a secret.
    :ivar cure: what to do, unless it is ok.
    :ivar id: the system check that says the same, such as ``audit_logging.W025``.
    """

    level: Level
    message: str
    cure: str = ""
    id: str = ""


def ok(message: str) -> Finding:
    """All is well, and this is what was seen."""
    return Finding("ok", message)


def warning(message: str, cure: str) -> Finding:
    """It works, and one day it may not."""
    return Finding("warning", message, cure)


def failure(message: str, cure: str) -> Finding:
    """It does not work."""
    return Finding("FAIL", message, cure)


#: Warnings, so that no command stops for them; but events are held up, or lost, while they last.
_HOLDS_UP = frozenset(f"audit_logging.W0{number}" for number in ("02", "23", "24", "25", "26"))

#: Django's own checks of what goes over TLS alone; they have no hint.
_OF_TLS = frozenset(f"security.W0{number}" for number in ("04", "08", "12", "16"))
_TLS_CURE = (
    "Set AUDIT_TLS=on where the publisher's project runs behind a proxy that ends TLS; in another "
    "project, the setting that the message names."
)


def of_checks(messages: Iterable[CheckMessage]) -> Iterator[Finding]:
    """What system checks say."""
    for each in messages:
        if not each.is_silenced():
            fails = each.level >= ERROR or each.id in _HOLDS_UP
            level: Level = "FAIL" if fails else "warning"
            cure = str(each.hint or "") or (_TLS_CURE if each.id in _OF_TLS else "")
            yield Finding(level, str(each.msg), cure, str(each.id or ""))


@dataclass(frozen=True, slots=True)
class Asked:
    """How strict to be.

    :ivar deploy: as of a production installation.
    """

    deploy: bool = False


Function = Callable[[Asked], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Examination:
    """One question, and whom to ask.

    :ivar seconds: how long it may take before it counts as failed.
    """

    group: str
    title: str
    function: Function
    seconds: float


_registered: list[Examination] = []


def examine(group: str, title: str, seconds: float = 10.0) -> Callable[[Function], Function]:
    """Register a function that yields findings; none at all when it does not apply here.

    It may raise: that is a failure with the error's text. It runs on a thread of its own.

    :param group: one of GROUPS.
    """
    if group not in GROUPS:
        raise ValueError(f"{group!r} is no group of examinations")

    def register(function: Function) -> Function:
        _registered.append(Examination(group, title, function, seconds))
        return function

    return register


def load() -> list[Examination]:
    """Return the examinations of all installed apps, by group."""
    names = modules()
    for name in names:
        import_module(name)
    there = [
        each
        for each in _registered
        if any(f"{each.function.__module__}.".startswith(f"{name}.") for name in names)
    ]
    return sorted(there, key=lambda each: GROUPS.index(each.group))


def modules() -> list[str]:
    """The modules that register examinations, of the installed apps."""
    return [
        name for config in apps.get_app_configs() if (name := getattr(config, "audit_doctor", ""))
    ]
