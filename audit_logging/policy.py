"""Policy: what is recorded of a request, by flags and endpoint rules that may change at any time.

The request thread reads an immutable :class:`Policy`; a background thread replaces it every
FLAGS_REFRESH_SECONDS from the source that FLAGS_SOURCE names. A source that does not answer
leaves the last known policy in force.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .background import Snapshot
from .conf import Level, LoggingSettings, conf

logger = logging.getLogger(__name__)

#: Paths are matched against rules up to this length, which bounds the time a pattern may take.
MATCHED_PATH = 2048
MAX_PATTERN = 200

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


class RuleError(ValueError):
    """A rule that is refused; the message says why and what to do."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a rule's regular expression, compiled.

    :raises RuleError: it is not one, is too long, or could take exponential time: a repetition
        inside a repetition, as in ``(a+)+``, stalls on hostile paths.
    """
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"The pattern has {len(pattern)} characters; at most {MAX_PATTERN} do.")
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RuleError(f"Not a regular expression: {error}.") from None
    if _nested_repeat(parsed, inside=False):
        raise RuleError(
            "A repetition inside a repetition can stall on some paths. Write it without nesting, "
            "for example a+ instead of (a+)+, or use a substring rule."
        )
    return compiled


def _nested_repeat(parsed: Any, inside: bool) -> bool:
    for operation, argument in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, body = argument
            repeats = most > 1
            if repeats and inside:
                return True
            if _nested_repeat(body, inside or repeats):
                return True
        elif name == "GROUPREF":
            # A back-reference makes matching exponential by itself.
            return True
        elif name == "BRANCH":
            if any(_nested_repeat(branch, inside) for branch in argument[1]):
                return True
        elif name == "SUBPATTERN":
            if _nested_repeat(argument[-1], inside):
                return True
        elif name in ("ASSERT", "ASSERT_NOT"):
            if _nested_repeat(argument[1], inside):
                return True
        elif name == "ATOMIC_GROUP" and _nested_repeat(argument, inside):
            return True
    return False


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
        excluded=tuple(options.EXCLUDE_PATHS),
    )


def from_document(document: dict[str, Any], options: LoggingSettings = conf) -> Policy:
    """Return the policy of a flags document (see :func:`document`), on top of the settings.

    What the document leaves out, or says in a way this version does not know, is as in the
    settings; a rule that cannot be used is skipped and logged, and the others hold.
    """
    base = from_settings(options)
    flags = document.get("flags") or {}
    rules = []
    for item in document.get("rules") or ():
        try:
            if item["level"] not in get_args(Level):
                raise RuleError(f"unknown level {item['level']!r}")
            compiled = compile_pattern(item["pattern"]) if item["match"] == "regex" else None
            rules.append(Rule(item["match"], item["pattern"], item["level"], compiled))
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("endpoint rule %r is left out: %s", item, error)
    cap = flags.get("max_body_bytes")
    return Policy(
        enabled=bool(flags.get("enabled", base.enabled)),
        response_bodies=bool(flags.get("response_bodies", base.response_bodies)),
        level=base.level,
        max_body_bytes=base.max_body_bytes if cap is None else int(cap),
        sample_rate=float(flags.get("sample_rate", base.sample_rate)),
        excluded=base.excluded,
        rules=tuple(rules),
    )


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
            return from_document(json.loads(self._path.read_text()))
        except (OSError, ValueError):
            return None

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
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".new")
            temporary.write_text(json.dumps(document))
            temporary.replace(self._path)
        except OSError as error:
            logger.warning("the flags could not be kept in %s: %s", self._path, error)


def make_snapshot(options: LoggingSettings = conf) -> Callable[[], Policy]:
    """Return a function that gives the policy in force; it does no I/O."""
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
    return Snapshot(
        load, initial=initial, interval=options.FLAGS_REFRESH_SECONDS, name="audit-flags"
    ).get
