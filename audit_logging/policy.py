"""Policy: what is recorded of a request, by flags and endpoint rules that may change at any time.

An immutable value, made in the background and read by request threads: everything that a
decision needs is worked out when the policy is made, and :meth:`Policy.decide` only looks it up.
Where policies come from is told in :mod:`audit_logging.flags`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .chance import chance
from .conf import LoggingSettings, conf
from .patterns import MATCHED_PATH
from .rules import Level, Rule, RuleError, parse, usable

__all__ = [
    "Decision",
    "Explanation",
    "Level",
    "Policy",
    "Rule",
    "document",
    "etag",
    "from_document",
    "from_settings",
    "overlay",
]

Reason = Literal["flag", "rule", "excluded", "sampled"]
Cause = Literal["flag", "excluded", "rule", "level"]

MOST_BODY_BYTES = 16 << 20

# The last 56 bits of a W3C trace id are random.
_RANDOM_BITS = 56
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1


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
class Verdict:
    """What flags and rules say of a path; sampling may still leave a request out.

    :ivar cause: what decided: the flag, an excluded path, a rule, or the level of all others.
    :ivar threshold: traces whose random bits are below it are recorded; None: all.
    """

    cause: Cause
    decision: Decision
    level: Level = "none"
    rule: Rule | None = None
    prefix: str = ""
    sample_rate: float = 1.0
    threshold: int | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a decision came out as it did.

    :ivar decision: what :meth:`Policy.decide` says.
    :ivar traced: whether the trace, and not chance, decided on sampling.
    """

    decision: Decision
    verdict: Verdict
    traced: bool


_SKIP: dict[str, Decision] = {reason: Decision(skip=reason) for reason in get_args(Reason)}
_OFF = Verdict("flag", _SKIP["flag"])
_SAMPLED = _SKIP["sampled"]

_Tests = tuple[tuple[str, Callable[[str], Any] | None, Verdict], ...]


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

    # Worked out from the above.
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _exclusions: tuple[Verdict, ...] = field(init=False, repr=False, compare=False)
    _tests: _Tests = field(init=False, repr=False, compare=False)
    _otherwise: Verdict = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        work_out = object.__setattr__
        work_out(self, "_prefixes", tuple(self.excluded))
        work_out(
            self,
            "_exclusions",
            tuple(Verdict("excluded", _SKIP["excluded"], prefix=item) for item in self.excluded),
        )
        work_out(
            self,
            "_tests",
            tuple(
                (rule.pattern, rule.compiled and rule.compiled.search, self._verdict(rule))
                for rule in self.rules
            ),
        )
        work_out(self, "_otherwise", self._verdict(None))

    def _verdict(self, rule: Rule | None) -> Verdict:
        level = self.level if rule is None else rule.level
        rate = self.sample_rate
        if rule is not None and rule.sample_rate is not None:
            rate = rule.sample_rate
        decision = _SKIP["rule"]
        if level != "none":
            decision = Decision(
                request_body=level in ("request", "request_response"),
                response_body=level == "request_response" and self.response_bodies,
                max_body_bytes=self.max_body_bytes,
            )
        threshold = int(rate * (1 << _RANDOM_BITS)) if rate < 1 and level != "none" else None
        return Verdict(
            "level" if rule is None else "rule", decision, level, rule, "", rate, threshold
        )

    def decide(self, path: str, traceparent: str = "") -> Decision:
        """Return what to record of a request to `path` that carries `traceparent`.

        On the path of each request: no I/O, no lock, and nothing is made anew.
        """
        verdict = self.verdict(path)
        if verdict.threshold is None or _kept(traceparent, verdict.threshold):
            return verdict.decision
        return _SAMPLED

    def verdict(self, path: str) -> Verdict:
        """Return what flags and rules say of `path`."""
        if not self.enabled:
            return _OFF
        if path.startswith(self._prefixes):
            for excluded in self._exclusions:
                prefix = excluded.prefix
                if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
                    return excluded
        for pattern, search, verdict in self._tests:
            if pattern in path if search is None else search(path[:MATCHED_PATH]):
                return verdict
        return self._otherwise

    def explain(self, path: str, traceparent: str = "") -> Explanation:
        """Return what :meth:`decide` says of a request, and why."""
        return Explanation(
            self.decide(path, traceparent),
            self.verdict(path),
            _random_bits(traceparent) is not None,
        )

    def base(self) -> dict[str, Any]:
        """Return the policy as JSON takes it; :func:`from_base` reads it."""
        return {
            "level": self.level,
            "response_bodies": self.response_bodies,
            "max_body_bytes": self.max_body_bytes,
            "sample_rate": self.sample_rate,
            "excluded": list(self.excluded),
            "rules": [rule.document() for rule in self.rules],
        }


def _random_bits(traceparent: str) -> int | None:
    """The random part of a W3C trace id, or None where there is no good one."""
    if len(traceparent) < 55 or traceparent[2] != "-" or traceparent[35] != "-":
        return None
    try:
        trace = int(traceparent[3:35], 16)
    except ValueError:
        return None
    # A trace id of zeros is none, says W3C.
    return trace & _RANDOM_MASK if trace else None


def _kept(traceparent: str, threshold: int) -> bool:
    """Whether to record: the same for every service that sees the same trace."""
    bits = _random_bits(traceparent)
    if bits is None:
        # Nothing to agree upon: this request stands for itself.
        bits = chance.getrandbits(_RANDOM_BITS)
    return bits < threshold


def from_settings(options: LoggingSettings = conf) -> Policy:
    """Return the policy that settings alone give."""
    return Policy(
        enabled=options.ENABLED,
        response_bodies=options.RESPONSE_BODIES,
        level=options.LEVEL,
        max_body_bytes=options.MAX_BODY_BYTES,
        sample_rate=options.SAMPLE_RATE,
        excluded=tuple(prefix.rstrip("/") or "/" for prefix in options.EXCLUDE_PATHS),
        rules=options.RULES,
    )


def from_base(base: dict[str, Any]) -> Policy:
    """Return the policy of settings that another process told of (:meth:`Policy.base`).

    :raises ValueError: they are not understood.
    """
    try:
        level = base["level"]
        if level not in get_args(Level):
            raise RuleError(f"unknown level {level!r:.50}")
        return Policy(
            response_bodies=bool(base["response_bodies"]),
            level=level,
            max_body_bytes=min(max(0, int(base["max_body_bytes"])), MOST_BODY_BYTES),
            sample_rate=min(max(0.0, float(base["sample_rate"])), 1.0),
            excluded=tuple(str(item) for item in base["excluded"]),
            rules=tuple(parse(item, "settings", n) for n, item in enumerate(base["rules"], 1)),
        )
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"settings not understood: {error!r}") from error


def from_document(document: dict[str, Any], options: LoggingSettings = conf) -> Policy:
    """Return the policy of a flags document (see :func:`document`), on top of the settings."""
    return overlay(from_settings(options), document)


def overlay(base: Policy, document: dict[str, Any]) -> Policy:
    """Return the policy of a flags document on top of what the settings say.

    What the document leaves out, or says in a way this version does not know, is as in the
    settings; a rule that cannot be used is skipped and logged, and the others hold. The admin's
    rules come first: the settings' own decide about paths that none of those is about.
    """
    flags = document.get("flags")
    flags = flags if isinstance(flags, dict) else {}
    rules = document.get("rules")
    return Policy(
        enabled=_flag(flags, "enabled", base.enabled),
        response_bodies=_flag(flags, "response_bodies", base.response_bodies),
        level=base.level,
        max_body_bytes=int(_number(flags, "max_body_bytes", base.max_body_bytes, MOST_BODY_BYTES)),
        sample_rate=_number(flags, "sample_rate", base.sample_rate, 1),
        excluded=base.excluded,
        rules=(*usable(rules if isinstance(rules, list) else []), *base.rules),
    )


def _flag(flags: dict[str, Any], name: str, default: bool) -> bool:
    value = flags.get(name)
    return value if isinstance(value, bool) else default


def _number(flags: dict[str, Any], name: str, default: float, most: float) -> float:
    value = flags.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        return default
    return value


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
