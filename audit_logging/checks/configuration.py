"""What the settings alone can tell: options, middleware, name, key, sizes."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from django.core.checks import CheckMessage

from ..conf import conf
from ..fingerprint import SHORTEST_KEY
from .catalogue import found
from .registering import MIDDLEWARE, app_installed, check, middleware, positions

#: The publisher takes no smaller keys.
MINIMUM_KEY_BITS = 2048

#: What may stand before the audit: it gives no answers of its own.
_TRANSPARENT = (
    "django.middleware.gzip.GZipMiddleware",
    "opentelemetry.instrumentation.",
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
)
#: What others answer by themselves.
_ANSWERS = {
    "SecurityMiddleware": "redirects to HTTPS",
    "WhiteNoiseMiddleware": "static files",
    "CorsMiddleware": "preflight requests",
    "CommonMiddleware": "redirects to the slash, refused user agents",
    "LocaleMiddleware": "redirects to a language",
    "CsrfViewMiddleware": "403 for a missing CSRF token",
    "UpdateCacheMiddleware": "answers from the cache",
    "FetchFromCacheMiddleware": "answers from the cache",
    "ConditionalGetMiddleware": "304 in place of the answer",
    "LoginRequiredMiddleware": "redirects to the login",
    "FlatpageFallbackMiddleware": "flat pages",
    "RedirectFallbackMiddleware": "redirects",
}

_PLACEHOLDERS = {
    "api", "app", "application", "audit", "change-me", "changeme", "default", "demo-service",
    "django", "django-app", "example", "foo", "my-api", "my-app", "my-service", "myapi", "myapp",
    "myproject", "myservice", "name", "placeholder", "project", "sample", "service",
    "service-name", "servicename", "tbd", "test", "todo", "unknown", "unnamed", "unnamed-service",
    "xxx", "your-service",
}  # fmt: skip
_TINY_BUFFER = 20


@check(unaudited=True)
def check_options() -> Iterator[CheckMessage]:
    """E001, E011: wrong or unknown options."""
    for problem in conf.problems():
        missing = "BROKER_URL" in problem.setting and "not installed" in problem.message
        number = "E011" if missing else "E001"
        yield found(number, f"{problem.setting}: {problem.message}", problem.cure)


@check(unaudited=True)
def check_middleware() -> Iterator[CheckMessage]:
    """E004, E005, E006, W003: the middleware, and its place."""
    if conf.problems() or not conf.ENABLED:
        return
    installed, at = app_installed(), positions()
    if not at:
        # The publisher and the sink install the app for its models and tasks, not to be audited.
        if installed and not app_installed("audit_publisher"):
            yield found(
                "E004",
                "MIDDLEWARE does not hold the audit middleware: nothing will be captured.",
            )
        return
    if not installed:
        yield found(
            "E005", 'MIDDLEWARE holds the audit middleware, INSTALLED_APPS not "audit_logging".'
        )
    names = middleware()
    if len(at) > 1:
        where = " and ".join(str(index + 1) for index in at)
        yield found("E006", f"MIDDLEWARE holds the audit middleware {len(at)} times: {where}.")
    before = [name for name in names[: at[0]] if not name.startswith(_TRANSPARENT)]
    if before:
        yield found("W003", f"In MIDDLEWARE stand before the audit: {_described(before)}.")


def _described(names: list[str]) -> str:
    parts = []
    for name in names:
        answers = _ANSWERS.get(name.rpartition(".")[2])
        parts.append(f"{name} (not recorded: {answers})" if answers else name)
    return ", ".join(parts)


@check()
def check_service() -> Iterator[CheckMessage]:
    """E002, W004: the service's name."""
    name = conf.SERVICE_NAME
    if not name:
        yield found("E002", "AUDIT_LOGGING has no SERVICE_NAME.")
    elif name.lower().replace("_", "-") in _PLACEHOLDERS or not any(map(str.isalnum, name)):
        yield found("W004", f"AUDIT_LOGGING SERVICE_NAME is {name!r}.")


@check()
def check_recording() -> Iterator[CheckMessage]:
    """E017, W019: settings by which nothing is recorded."""
    if any(not path.strip("/") for path in conf.EXCLUDE_PATHS):
        yield found("E017", 'AUDIT_LOGGING EXCLUDE_PATHS holds "/".')
    if conf.FLAGS_SOURCE == "settings":
        for name, value in (("LEVEL", conf.LEVEL), ("SAMPLE_RATE", conf.SAMPLE_RATE)):
            if value in ("none", 0):
                yield found("W019", f"AUDIT_LOGGING {name} is {value!r}.")


# -- delivery ----------------------------------------------------------------------------------


@check()
def check_delivery() -> Iterator[CheckMessage]:
    """E012, W009: the way that was chosen is there."""
    if conf.BROKER_URL.startswith("memory:") and conf.DELIVERY != "direct":
        yield found("W009", "AUDIT_LOGGING BROKER_URL is memory://.")
    if conf.DELIVERY == "kafka" and not app_installed("audit_publisher"):
        # Whether the client of its event log is installed, that app says by itself.
        yield found(
            "E012",
            'AUDIT_LOGGING DELIVERY is kafka, and "audit_publisher" is not in INSTALLED_APPS.',
        )


@check()
def check_key() -> Iterator[CheckMessage]:
    """E003, E007 to E010, W001, W005: the signing key."""
    path = conf.PRIVATE_KEY_PATH
    if path is None:
        if conf.DELIVERY != "kafka":
            yield found("W001", "AUDIT_LOGGING PRIVATE_KEY_PATH is not set: no signatures.")
        return
    if not conf.CONSUMER_ID:
        yield found("E010", "AUDIT_LOGGING CONSUMER_ID is empty: a signature needs it.")
    try:
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        if not files:
            yield found("E003", f"PRIVATE_KEY_PATH: {path} holds no `<key version>.pem`.")
        for file in files:
            yield from _check_key_file(file)
    except OSError as error:
        yield found("E003", f"PRIVATE_KEY_PATH: {error.strerror or error}: {path}")


def _check_key_file(path: Path) -> Iterator[CheckMessage]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        pem = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        yield found("E003", f"PRIVATE_KEY_PATH: {error.strerror or error}: {path}")
        return
    yield from _check_mode("PRIVATE_KEY_PATH", path, mode)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        yield found("E007", f"PRIVATE_KEY_PATH: {path} is encrypted.")
        return
    except (ValueError, UnsupportedAlgorithm):
        what = "a public key" if b"PUBLIC KEY-----" in pem else "no private key in PEM"
        what = "a certificate" if b"BEGIN CERTIFICATE" in pem else what
        yield found("E008", f"PRIVATE_KEY_PATH: {path} is {what}.")
        return
    if not isinstance(key, RSAPrivateKey):
        yield found("E008", f"PRIVATE_KEY_PATH: {path} is a private key, but not an RSA key.")
    elif key.key_size < MINIMUM_KEY_BITS:
        yield found(
            "E009",
            f"PRIVATE_KEY_PATH: {path} has {key.key_size} bits; {MINIMUM_KEY_BITS} are needed.",
        )


def _check_mode(name: str, path: Path, mode: int) -> Iterator[CheckMessage]:
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        yield found("W005", f"{name}: {path} has the mode {stat.S_IMODE(mode):04o}.")


@check()
def check_fingerprints() -> Iterator[CheckMessage]:
    """E018, W005: the key of fingerprints."""
    path = conf.FINGERPRINT_KEY_PATH
    if path is None:
        return
    name = "FINGERPRINT_KEY_PATH"
    try:
        key = path.read_bytes().strip()
        mode = path.stat().st_mode
    except OSError as error:
        yield found("E018", f"{name}: {error.strerror or error}: {path}")
        return
    if len(key) < SHORTEST_KEY:
        yield found("E018", f"{name}: {path} holds {len(key)} bytes; {SHORTEST_KEY} are needed.")
    yield from _check_mode(name, path, mode)


# -- sizes -------------------------------------------------------------------------------------


@check()
def check_sizes() -> Iterator[CheckMessage]:
    """E013, E014, E019, W015 to W018: bounds that are right one by one, and wrong together."""

    def said(name: str, word: str, other: str, more: str = "") -> str:
        mine, its = getattr(conf, name), getattr(conf, other)
        return f"AUDIT_LOGGING {name} ({mine:,}) is {word} {other} ({its:,}){more}."

    if conf.BUFFER_BYTES < conf.MAX_BODY_BYTES:
        yield found("E013", said("BUFFER_BYTES", "smaller than", "MAX_BODY_BYTES"))
    for name in ("MAX_EVENT_BYTES", "BATCH_BYTES"):
        if conf.OVERFLOW == "spool" and getattr(conf, name) > conf.SPOOL_MAX_BYTES:
            yield found("E014", said("SPOOL_MAX_BYTES", "smaller than", name))
            break
    if conf.BATCH_BYTES < conf.MAX_EVENT_BYTES:
        yield found("W015", said("BATCH_BYTES", "smaller than", "MAX_EVENT_BYTES"))
    if conf.MAX_BODY_BYTES > conf.MAX_EVENT_BYTES:
        yield found("W016", said("MAX_BODY_BYTES", "larger than", "MAX_EVENT_BYTES"))
    if conf.OVERFLOW == "drop" and conf.BUFFER_SIZE < _TINY_BUFFER:
        yield found(
            "W017", f"AUDIT_LOGGING OVERFLOW is drop, and BUFFER_SIZE is {conf.BUFFER_SIZE}."
        )
    if conf.WORKERS_MIN > conf.WORKERS_MAX:
        yield found("E019", said("WORKERS_MIN", "larger than", "WORKERS_MAX"))
    if conf.SHUTDOWN_SECONDS < 2 * conf.BROKER_TIMEOUT:
        yield found(
            "W018",
            f"AUDIT_LOGGING SHUTDOWN_SECONDS ({conf.SHUTDOWN_SECONDS:g}) is less than twice "
            f"BROKER_TIMEOUT ({conf.BROKER_TIMEOUT:g}).",
        )


__all__ = [
    "MIDDLEWARE",
    "check_delivery",
    "check_fingerprints",
    "check_key",
    "check_middleware",
    "check_options",
    "check_recording",
    "check_service",
    "check_sizes",
]
