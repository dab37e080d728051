"""Typed options: one declaration gives the value, its environment variable, its check and its docs.

Each app's ``conf.py`` declares a subclass of :class:`AppSettings`. An option ``NAME`` of the app
with prefix ``AUDIT_SINK`` is read, first found wins, from

1. the environment variable ``AUDIT_SINK_NAME`` (an operator can change it without a release),
2. the key ``NAME`` of the Django setting ``AUDIT_SINK`` (a dict),
3. the declared default.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

_MISSING: Any = object()
# Kubernetes tells every container of every service: a service named audit-sink makes
# AUDIT_SINK_SERVICE_HOST, AUDIT_SINK_PORT, AUDIT_SINK_PORT_80_TCP_ADDR and more.
_SERVICE_LINK = re.compile(r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_\d+_.+)?)$")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Problem:
    """A misconfiguration: which setting, what is wrong with it, and what to do."""

    setting: str
    message: str
    cure: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.message} {self.cure}"


class _Invalid(Exception):
    """A value that an option refuses; carries (message, cure)."""


class Option:
    """One declared option; as a class attribute it reads its own value.

    :param default: the value when nothing is configured; a callable is called for it each time.
    :param help: one or two sentences for the configuration page.
    :param unit: for numbers: ``seconds``, ``bytes``, ``records`` …
    :param minimum: smallest number accepted.
    :param maximum: largest number accepted.
    :param validate: called with the parsed value; raises ValueError with a sentence.
    :param default_text: how the documentation shows a computed default.
    :param convert: makes the value of what is configured, text or not; raises ValueError with a
        sentence. For types that are none of the plain ones.
    :param type_text: how the documentation shows the type of an option with `convert`.
    """

    def __init__(
        self,
        default: Any,
        help: str,
        *,
        unit: str = "",
        minimum: float | None = None,
        maximum: float | None = None,
        validate: Callable[[Any], None] | None = None,
        default_text: str = "",
        convert: Callable[[Any], Any] | None = None,
        type_text: str = "",
    ) -> None:
        self.default = default
        self.help = help
        self.unit = unit
        self.minimum = minimum
        self.maximum = maximum
        self.validate = validate
        self.default_text = default_text
        self.convert = convert
        self.type_text = type_text
        self.name = ""
        self.type: Any = str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: AppSettings | None, owner: type) -> Any:
        if instance is None:
            return self
        cached = instance._cache.get(self.name, _MISSING)
        if cached is _MISSING:
            cached = instance._cache[self.name] = instance.read(self)
        return cached

    @property
    def type_name(self) -> str:
        """The option's type as a reader of the documentation expects it."""
        if self.type_text:
            return self.type_text
        choices = _choices(self.type)
        if choices:
            return " | ".join(choices)
        base = _strip_optional(self.type)
        if get_origin(base) is tuple:
            return "comma-separated list"
        name = {Path: "path", str: "string", int: "integer", float: "number", bool: "on | off"}
        return name.get(base, getattr(base, "__name__", str(base)))

    def parse(self, raw: Any, from_text: bool) -> Any:
        """Return `raw` as this option's type, or raise :class:`_Invalid`."""
        try:
            value = self.convert(raw) if self.convert else self._coerce(raw, from_text)
        except ValueError as error:
            raise _Invalid(str(error), "") from error
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if self.minimum is not None and value < self.minimum:
                raise _Invalid(f"{value} is too small.", f"Use {self.minimum:g} or more.")
            if self.maximum is not None and value > self.maximum:
                raise _Invalid(f"{value} is too large.", f"Use {self.maximum:g} or less.")
        if self.validate is not None and value is not None:
            try:
                self.validate(value)
            except ValueError as error:
                raise _Invalid(str(error), "") from error
        return value

    def _coerce(self, raw: Any, from_text: bool) -> Any:
        optional = _is_optional(self.type)
        base = _strip_optional(self.type)
        if raw is None or (from_text and raw == "" and optional):
            if optional:
                return None
            raise _Invalid("It has no value.", f"Give a {self.type_name}, or remove it.")
        choices = _choices(self.type)
        if choices:
            if raw in choices:
                return raw
            close = difflib.get_close_matches(str(raw), choices, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise _Invalid(f"{raw!r} is not one of them.{hint}", f"Use {' | '.join(choices)}.")
        if base is bool:
            if isinstance(raw, bool):
                return raw
            text = str(raw).strip().lower() if from_text else ""
            if text in _TRUE:
                return True
            if text in _FALSE:
                return False
            raise _Invalid(f"{raw!r} is not on or off.", "Use true or false.")
        if base in (int, float):
            if isinstance(raw, bool) or (not from_text and not isinstance(raw, (int, float))):
                raise _Invalid(f"{raw!r} is not a number.", f"Give {_a(self.type_name)}.")
            try:
                number = base(raw)
                if not math.isfinite(number) or (not from_text and number != raw):
                    raise ValueError
                return number
            except (ValueError, OverflowError):
                unit = f" ({self.unit})" if self.unit else ""
                raise _Invalid(
                    f"{raw!r} is not {_a(self.type_name)}.", f"Give {_a(self.type_name)}{unit}."
                ) from None
        if get_origin(base) is tuple:
            items = raw.split(",") if isinstance(raw, str) else raw
            if not isinstance(items, (list, tuple, set, frozenset)):
                raise _Invalid(f"{raw!r} is not a list.", "Give a list of strings.")
            return tuple(str(item).strip() for item in items if str(item).strip())
        if base is Path:
            if not isinstance(raw, (str, Path)):
                raise _Invalid(f"{raw!r} is not a path.", "Give a path.")
            return Path(raw).expanduser()
        if base is str:
            if not isinstance(raw, str):
                raise _Invalid(f"{raw!r} is not a string.", "Put it in quotes.")
            return raw.strip()
        return raw


def option(default: Any, help: str, **rules: Any) -> Any:
    """Declare an option; typed as Any so that the annotation beside it is what readers see."""
    return Option(default, help, **rules)


class AppSettings:
    """The options of one app; subclasses set `prefix` and declare options with annotations."""

    prefix: ClassVar[str] = ""
    #: A short text that opens this group on the configuration page.
    about: ClassVar[str] = ""
    #: False for options that Django's own settings are built from: environment only.
    in_django_settings: ClassVar[bool] = True
    #: Longer prefixes that belong to other groups, though they start with this one's.
    foreign_prefixes: ClassVar[tuple[str, ...]] = ()

    _options: ClassVar[dict[str, Option]] = {}

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls)
        cls._options = {}
        for name, declared in list(vars(cls).items()):
            if isinstance(declared, Option):
                declared.type = hints.get(name, str)
                cls._options[name] = declared

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._cache: dict[str, Any] = {}
        self._environ = os.environ if environ is None else environ

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options.values())

    def variable(self, name: str) -> str:
        """The environment variable of option `name`."""
        return f"{self.prefix}_{name}"

    def reload(self) -> None:
        """Forget values read before (tests and a changed environment)."""
        self._cache.clear()

    def read(self, declared: Option) -> Any:
        """Return the configured value of one option.

        :raises ImproperlyConfigured: naming the setting and the cure.
        """
        try:
            return self._read(declared)[0]
        except _Invalid as error:
            raise ImproperlyConfigured(str(self._problem(declared, error))) from None

    def _read(self, declared: Option) -> tuple[Any, str]:
        variable = self.variable(declared.name)
        if variable in self._environ:
            return declared.parse(self._environ[variable], from_text=True), variable
        configured = self._settings_dict()
        if declared.name in configured:
            return declared.parse(configured[declared.name], from_text=False), self.prefix
        default = declared.default
        return (default() if callable(default) else default), ""

    def _settings_dict(self) -> Mapping[str, Any]:
        if not self.in_django_settings:
            return {}
        from django.conf import settings

        configured = getattr(settings, self.prefix, {})
        return configured if isinstance(configured, Mapping) else {}

    def _problem(self, declared: Option, error: _Invalid) -> Problem:
        message, cure = error.args
        variable = self.variable(declared.name)
        where = variable if variable in self._environ else f'{self.prefix}["{declared.name}"]'
        return Problem(where, message, cure)

    def problems(self) -> list[Problem]:
        """Every misconfiguration of this group: wrong values and names that do not exist."""
        found = []
        for declared in self:
            try:
                self._read(declared)
            except _Invalid as error:
                found.append(self._problem(declared, error))
        if self.in_django_settings:
            from django.conf import settings

            configured = getattr(settings, self.prefix, {})
            if not isinstance(configured, Mapping):
                found.append(Problem(self.prefix, "It is not a dict.", "Make it a dict."))
            else:
                for key in configured:
                    if key not in self._options:
                        found.append(self._unknown(f'{self.prefix}["{key}"]', str(key), ""))
        start = f"{self.prefix}_"
        for variable in sorted(self._environ):
            if not variable.startswith(start) or variable.startswith(self.foreign_prefixes or "\0"):
                continue
            name = variable.removeprefix(start)
            if name not in self._options and not _SERVICE_LINK.search(name):
                found.append(self._unknown(variable, name, start))
        return found

    def _unknown(self, where: str, name: str, start: str) -> Problem:
        close = difflib.get_close_matches(name.upper(), self._options, n=1)
        cure = (
            f"Did you mean {start}{close[0]}?"
            if close
            else "Remove it, or see docs/configuration.md for the names that exist."
        )
        return Problem(where, "There is no such option.", cure)

    def enforce(self) -> None:
        """Raise one ImproperlyConfigured that lists every problem; called once at start."""
        problems = self.problems()
        if problems:
            raise ImproperlyConfigured("\n".join(str(problem) for problem in problems))


def readable_file(path: Path) -> None:
    """A `validate` for options that name a file which must be there at start."""
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}. Name a file that this process can read."
        ) from error


def url_of(schemes: Mapping[str, tuple[str, str]]) -> Callable[[str], None]:
    """A `validate` for addresses whose scheme decides which package serves them.

    :param schemes: scheme → (module that must be importable or "", the extra that installs it).
    """

    def check(value: str) -> None:
        if not value:
            return
        scheme, colon, _ = value.partition("://")
        if not colon or scheme not in schemes:
            known = ", ".join(f"{name}://…" for name in schemes)
            # Not the whole value: it may hold a password.
            what = f"{scheme!r} is not supported" if colon else "It is no address"
            raise ValueError(f"{what}. Use one of {known}")
        if scheme in _BROKERS:
            _check_address(scheme, value)
        module, extra = schemes[scheme]
        try:
            missing = bool(module) and importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise ValueError(
                f"{scheme}: needs the package {module.partition('.')[0]}, which is not installed. "
                f"pip install 'django-api-audit[{extra}]'"
            )

    return check


#: Their clients fail with a traceback at what is no address.
_BROKERS = frozenset({"durable", "redis", "rediss", "amqp", "amqps"})


def _check_address(scheme: str, value: str) -> None:
    # A client may be given several, of which it takes the first that answers.
    for one in value.split(";"):
        try:
            parts = urlsplit(one)
            port = parts.port
        except ValueError:
            raise ValueError("The port is no number from 1 to 65535, or the host is none") from None
        if port == 0:
            raise ValueError("The port is no number from 1 to 65535")
        if scheme == "durable" and (parts.netloc or len(parts.path) < 2 or parts.path[-1] == "/"):
            raise ValueError(
                "Give the file's whole path, with three slashes: durable:///srv/b.sqlite3"
            )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _is_optional(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def _strip_optional(annotation: Any) -> Any:
    if _is_optional(annotation):
        return next(arg for arg in get_args(annotation) if arg is not type(None))
    return annotation


def _choices(annotation: Any) -> list[str]:
    base = _strip_optional(annotation)
    return list(typing.get_args(base)) if get_origin(base) is Literal else []
