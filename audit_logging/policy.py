"""Policy: what is recorded of a request, by flags and endpoint rules that may change at any time.

The request thread reads an immutable :class:`Policy`; a background thread replaces it every
FLAGS_REFRESH_SECONDS from the source that FLAGS_SOURCE names. A source that does not answer
leaves the last known policy in force.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .background import Snapshot
from .conf import Level, LoggingSettings, conf
from .patterns import MATCHED_PATH, RuleError, compile_pattern

logger = logging.getLogger(__name__)

# How long a starting process waits for its flags before it serves by its settings.
_FIRST_LOAD = 1.0

Reason = Literal["flag", "rule", "excluded", "sampled"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to record of one request.

    :ivar skip: why it is not recorded at all, or None when it is.
    """

    skip: Reason | None = None
    request_body: bool = False
    response_body: bool = False
    max_body_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """An endpoint rule: the first whose pattern matches a path decides its level."""

    match: Literal["substring", "regex"]
    pattern: str
    level: Level
    compiled: re.Pattern[str] | None = None

    def matches(self, path: str) -> bool:
        """Whether this rule is about `path`."""
        if self.compiled is None:
            return self.pattern in path
        return self.compiled.search(path[:MATCHED_PATH]) is not None


@dataclass(frozen=True, slots=True)
class Policy:
    """Flags and rules of one service at one moment."""

    enabled: bool = True
    response_bodies: bool = True
    level: Level = "request_response"
    max_body_bytes: int = 0
    sample_rate: float = 1.0
    excluded: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    def decide(self, path: str, traceparent: str = "") -> Decision:
        """Return what to record of a request to `path` that carries `traceparent`."""
        if not self.enabled:
            return _SKIP["flag"]
        for prefix in self.excluded:
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                return _SKIP["excluded"]
        level = self.level
        for rule in self.rules:
            if rule.matches(path):
                level = rule.level
                break
        if level == "none":
            return _SKIP["rule"]
        if self.sample_rate < 1 and not _sampled(traceparent, self.sample_rate):
            return _SKIP["sampled"]
        return Decision(
            request_body=level in ("request", "request_response"),
            response_body=level == "request_response" and self.response_bodies,
            max_body_bytes=self.max_body_bytes,
        )


_SKIP: dict[str, Decision] = {reason: Decision(skip=reason) for reason in get_args(Reason)}


def _sampled(traceparent: str, rate: float) -> bool:
    """Whether to record: the same for every service that sees the same trace."""
    parts = traceparent.split("-")
    if len(parts) > 1 and len(parts[1]) == 32:
        try:
            # The last 56 bits of a W3C trace id are random.
            return int(parts[1][-14:], 16) < rate * (1 << 56)
        except ValueError:
            pass
    import random

    return random.random() < rate  # noqa: S311  # sampling, not a secret


def from_settings(options: LoggingSettings = conf) -> Policy:
    """Return the policy that settings alone give."""
    return Policy(
        enabled=options.ENABLED,
        response_bodies=options.RESPONSE_BODIES,
        level=options.LEVEL,
        max_body_bytes=options.MAX_BODY_BYTES,
        sample_rate=options.SAMPLE_RATE,
        excluded=tuple(prefix.rstrip("/") or "/" for prefix in options.EXCLUDE_PATHS),
    )


def from_document(document: dict[str, Any], options: LoggingSettings = conf) -> Policy:
    """Return the policy of a flags document (see :func:`document`), on top of the settings.

    What the document leaves out, or says in a way this version does not know, is as in the
    settings; a rule that cannot be used is skipped and logged, and the others hold.
    """
    base = from_settings(options)
    flags = document.get("flags")
    flags = flags if isinstance(flags, dict) else {}
    rules = document.get("rules")
    return Policy(
        enabled=_flag(flags, "enabled", base.enabled),
        response_bodies=_flag(flags, "response_bodies", base.response_bodies),
        level=base.level,
        max_body_bytes=int(_number(flags, "max_body_bytes", base.max_body_bytes, 16 << 20)),
        sample_rate=_number(flags, "sample_rate", base.sample_rate, 1),
        excluded=base.excluded,
        rules=tuple(_rules(rules if isinstance(rules, list) else [])),
    )


def _flag(flags: dict[str, Any], name: str, default: bool) -> bool:
    value = flags.get(name)
    return value if isinstance(value, bool) else default


def _number(flags: dict[str, Any], name: str, default: float, most: float) -> float:
    value = flags.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        return default
    return value


def _rules(items: list[Any]) -> Iterator[Rule]:
    for item in items:
        try:
            match, pattern, level = item["match"], item["pattern"], item["level"]
            if level not in get_args(Level) or match not in ("substring", "regex"):
                raise RuleError("this version knows no such level or match")
            if not isinstance(pattern, str) or not pattern:
                raise RuleError("it has no pattern")
            compiled = compile_pattern(pattern) if match == "regex" else None
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("endpoint rule %r is left out: %s", item, error)
            continue
        yield Rule(match, pattern, level, compiled)


def document(service_name: str) -> dict[str, Any]:
    """Return the flags and rules that the admin holds for a service, as JSON takes them.

    A service without flags of its own has those of the service named ``*``, if there are any.
    """
    from .models import CaptureFlags

    found = {
        flags.service_name: flags
        for flags in CaptureFlags.objects.filter(
            service_name__in=(service_name, CaptureFlags.EVERY_SERVICE)
        ).prefetch_related("rules")
    }
    flags = found.get(service_name) or found.get(CaptureFlags.EVERY_SERVICE)
    return {"flags": {}, "rules": []} if flags is None else flags.document()


def etag(document: dict[str, Any]) -> str:
    """Return the entity tag of a flags document."""
    text = json.dumps(document, sort_keys=True)
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


class DatabaseSource:
    """Flags from this service's own admin."""

    def __call__(self) -> Policy:
        from django.db import connections, router

        from .models import CaptureFlags

        try:
            return from_document(document(conf.SERVICE_NAME))
        finally:
            # This runs on its own thread: an idle connection would only hold a slot, and keep a
            # test database from being dropped.
            connections[router.db_for_read(CaptureFlags)].close()


class PublisherSource:
    """Flags from the central admin, through the publisher; the last answer is kept on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._etag = ""
        self._policy: Policy | None = None

    def kept(self) -> Policy | None:
        """Return the last answer of an earlier run, if there is a readable one."""
        try:
            document = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        return from_document(document) if isinstance(document, dict) else None

    def __call__(self) -> Policy:
        from .delivery import get_publisher

        answer = get_publisher().flags(conf.SERVICE_NAME, self._etag)
        if answer is None and self._policy is not None:
            return self._policy
        if answer is not None:
            document, self._etag = answer
            self._policy = from_document(document)
            self._keep(document)
        if self._policy is None:
            raise RuntimeError("the publisher answered «not modified» to a first question")
        return self._policy

    def _keep(self, document: dict[str, Any]) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Each process writes its own: two that wrote one file would mix their answers.
            temporary = self._path.with_suffix(f".{os.getpid()}.new")
            temporary.unlink(missing_ok=True)
            # Which paths keep their bodies out is nobody else's business.
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(document))
            temporary.replace(self._path)
        except OSError as error:
            logger.warning("the flags could not be kept in %s: %s", self._path, error)


def make_snapshot(options: LoggingSettings = conf) -> Callable[[], Policy]:
    """Return a function that gives the policy in force; it does no I/O.

    For the start of a process: this waits, for a second at most, for the first answer.
    """
    initial = from_settings(options)
    load: Callable[[], Policy]
    if options.FLAGS_SOURCE == "settings":
        return lambda: initial
    if options.FLAGS_SOURCE == "publisher":
        source = PublisherSource(options.DATA_DIR / "flags.json")
        initial = source.kept() or initial
        load = source
    else:
        load = DatabaseSource()
    snapshot = Snapshot(
        load, initial=initial, interval=options.FLAGS_REFRESH_SECONDS, name="audit-flags"
    )
    # A rule that keeps bodies out must hold from the first request on.
    snapshot.prime(_FIRST_LOAD)
    return snapshot.get
