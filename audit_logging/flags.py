"""Where policies come from: the service's own admin, or the central one through the publisher.

One :class:`Flags` in each process asks its source in the background and keeps the last answer, in
memory and on disk: a source that does not answer leaves that in force, also over a restart.
Request threads read an attribute.

In a test run nothing is asked: the host's tests count their queries, forbid them, and drop
databases. The settings' flags hold there, until :func:`audit_logging.testing.refresh_flags`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from .background import Loop
from .chance import chance
from .conf import LoggingSettings, conf
from .folders import make_private
from .forks import within
from .policy import Policy, document, etag, from_settings, overlay

logger = logging.getLogger(__name__)

#: Seconds that a starting process waits for its flags before it serves by the last known ones.
FIRST_LOAD = 1.0
#: Seconds between two questions to a source that does not answer, at the longest.
LONGEST_PAUSE = 5.0

_MOST_KEPT = 4 << 20

#: A flags document and its entity tag.
Answer = tuple[dict[str, Any], str]


class Source(Protocol):
    """Answers what flags a service has; called in the background alone."""

    def load(self, tag: str, *, tell: bool) -> Answer | None:
        """Return the flags now, or None while those of `tag` hold.

        :param tell: whether this process may be shown as one that captures.
        """

    def in_force(self, tag: str) -> None:
        """The flags of `tag` are in force in this process."""

    def rest(self, *, last: bool = False) -> None:
        """There is a pause now, or in this thread no further question at all (`last`)."""


class DatabaseSource:
    """Flags from this service's own admin."""

    def __init__(self, options: LoggingSettings = conf) -> None:
        from .uptake import Reporter

        self._service = options.SERVICE_NAME
        self._reporter = Reporter(options, "database")

    def load(self, tag: str, *, tell: bool) -> Answer | None:
        """Return the flags that the admin holds."""
        # A child that is forked in the middle of a SQLite transaction sees a lock that never ends.
        with within:
            found = document(self._service)
        now = etag(found)
        return None if now == tag else (found, now)

    def in_force(self, tag: str) -> None:
        """Note in the flags' database that this process has them, for the admin to show."""
        with within:
            self._reporter.store(tag)

    def rest(self, *, last: bool = False) -> None:
        """Treat the connections of this thread as CONN_MAX_AGE says, as after a request."""
        from django.db import connections, router

        from .models import CaptureFlags, CaptureProcess

        for alias in {router.db_for_read(CaptureFlags), router.db_for_write(CaptureProcess)}:
            if last:
                connections[alias].close()
            else:
                connections[alias].close_if_unusable_or_obsolete()


class PublisherSource:
    """Flags from the central admin, through the publisher; each question says who asks."""

    def __init__(self, options: LoggingSettings = conf) -> None:
        from .uptake import Reporter

        self._service = options.SERVICE_NAME
        self._reporter = Reporter(options, "publisher")

    def load(self, tag: str, *, tell: bool) -> Answer | None:
        """Ask the publisher; `tag` tells it what is in force here."""
        from .delivery import get_publisher

        headers = self._reporter.headers() if tell else {}
        answer = get_publisher().flags(self._service, tag, headers)
        if answer is None:
            return None
        found, now = answer
        return found, now or etag(found)

    def in_force(self, tag: str) -> None:
        """The next question says so."""

    def rest(self, *, last: bool = False) -> None:
        """Nothing is held."""


class Kept:
    """The last answer on disk, for a restart while the source is away."""

    def __init__(self, path: Path, source: str, service: str) -> None:
        self._path = path
        self._about = {"source": source, "service": service}
        self._tag = ""

    def read(self) -> Answer | None:
        """Return the last answer of an earlier run, if there is a readable one."""
        try:
            if self._path.stat().st_size > _MOST_KEPT:
                return None
            found = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not found.items() >= self._about.items():
            return None
        flags, tag = found.get("document"), found.get("etag")
        if not isinstance(flags, dict) or not isinstance(tag, str):
            return None
        self._tag = tag
        return flags, tag

    def write(self, answer: Answer) -> None:
        """Keep an answer; a disk that does not take it is logged, and no more."""
        flags, tag = answer
        if tag and tag == self._tag:
            return
        try:
            make_private(self._path.parent)
            # Each process writes its own: two that wrote one file would mix their answers.
            temporary = self._path.with_suffix(f".{os.getpid()}.new")
            temporary.unlink(missing_ok=True)
            # Which paths keep their bodies out is nobody else's business.
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(self._about | {"etag": tag, "document": flags}))
            temporary.replace(self._path)
            self._tag = tag
        except OSError as error:
            logger.warning("the flags could not be kept in %s: %s", self._path, error)


class Flags:
    """The policy in force in this process, kept up to date in the background.

    :param even_in_tests: ask the source in a test run too.
    """

    def __init__(self, options: LoggingSettings = conf, *, even_in_tests: bool = False) -> None:
        self._options = options
        self._even_in_tests = even_in_tests
        self._said_quiet = False
        self._pid = 0
        self._loop: Loop | None = None
        self.reset()

    def reset(self) -> None:
        """Begin anew: by the settings as they are now, or what an earlier run has kept."""
        self.stop(0)
        options = self._options
        self._base = from_settings(options)
        self._etag = ""
        self._failing = 0
        self._source = _source(options)
        self._kept = Kept(
            options.DATA_DIR / "flags.json", options.FLAGS_SOURCE, options.SERVICE_NAME
        )
        #: What holds now.
        self.policy = self._base
        #: When the source answered last, on the monotonic clock.
        self.loaded_at: float | None = None
        kept = None if self._source is None or self._quiet() else self._kept.read()
        if kept is not None:
            self._put_in_force(*kept)
        self._loop = Loop(self._step, name="audit-flags")
        self._pid = 0

    def get(self) -> Policy:
        """Return the policy in force: no lock, no I/O."""
        if self._pid != os.getpid():
            self._start()
        return self.policy

    def prime(self, timeout: float = FIRST_LOAD) -> bool:
        """Ask once before the first request; return whether it worked within `timeout` seconds.

        On a thread of its own: the caller may run in an event loop, where the ORM refuses to work.
        """
        if self._source is None or self._quiet():
            return False
        thread = threading.Thread(target=self._prime, name="audit-flags-first", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return False
        thread.join(timeout)
        return self.loaded_at is not None

    def refresh(self, *, tell: bool = False) -> None:
        """Ask now, in this thread.

        :param tell: let the admin know of this process.

        :raises Exception: whatever the source raises; the last known flags stay in force.
        """
        if self._source is None:
            return
        answer = self._source.load(self._etag, tell=tell)
        if answer is None and not self._etag:
            raise RuntimeError("the source answered «not modified» to a first question")
        if answer is not None:
            self._put_in_force(*answer)
            if not self._quiet():
                self._kept.write(answer)
        self.loaded_at = time.monotonic()

    def stop(self, timeout: float = 1.0) -> None:
        """End the background thread."""
        if self._loop is not None:
            self._loop.stop(timeout)

    def _put_in_force(self, found: dict[str, Any], tag: str) -> None:
        self.policy = overlay(self._base, found)
        self._etag = tag

    def _quiet(self) -> bool:
        if self._even_in_tests or not in_test_run():
            return False
        if not self._said_quiet:
            self._said_quiet = True
            logger.info(
                "this is taken for a test run: FLAGS_SOURCE %s is not asked, and the settings' "
                "flags hold",
                self._options.FLAGS_SOURCE,
            )
        return True

    def _start(self) -> None:
        if self._source is not None and self._loop is not None and not self._quiet():
            try:
                self._loop.ensure_running()
            except RuntimeError:
                # No thread to be had now; the next reader tries again.
                return
        self._pid = os.getpid()

    def _prime(self) -> None:
        assert self._source is not None  # noqa: S101
        try:
            # Who primes need not serve: a parent that only preloads the application does not.
            self._ask(tell=False)
        finally:
            self._source.rest(last=True)

    def _step(self) -> float:
        source = self._source
        if source is None or self._quiet():
            return LONGEST_PAUSE
        before = self._etag
        try:
            if self._ask(tell=True):
                source.in_force(self._etag)
        finally:
            source.rest()
        if self._etag != before:
            # The next question tells that they are in force here: whoever changed them waits.
            return chance.uniform(0.1, 0.5)
        interval: float = self._options.FLAGS_REFRESH_SECONDS
        if self._failing:
            interval = min(max(interval, LONGEST_PAUSE), interval * 2 ** min(self._failing, 8))
        # Processes that started together must not ask together.
        return interval * chance.uniform(0.7, 1.0)

    def _ask(self, *, tell: bool) -> bool:
        try:
            self.refresh(tell=tell)
        except Exception as error:  # noqa: BLE001  # whatever a driver raises
            if not self._failing:
                logger.warning(
                    "the flags cannot be looked up (FLAGS_SOURCE is %s), the last known ones stay "
                    "in force: %s",
                    self._options.FLAGS_SOURCE,
                    error,
                )
            self._failing += 1
            return False
        if self._failing:
            logger.info("the flags can be looked up again")
        self._failing = 0
        return True


def _source(options: LoggingSettings) -> Source | None:
    if options.FLAGS_SOURCE == "publisher":
        return PublisherSource(options)
    return DatabaseSource(options) if options.FLAGS_SOURCE == "database" else None


#: What pytest sets while it runs, from 8.2 on, and in the processes of pytest-xdist.
_PYTEST_TELLS = {"PYTEST_VERSION", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"}


def in_test_run() -> bool:
    """Whether this process runs a Django test suite.

    Nothing is imported to find out. That a module is there says nothing: a service in production
    may have a test library loaded, and mails that it keeps in memory.
    """
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    if hasattr(state, "saved_data"):
        return True
    # While pytest collects, too: a test module may make the application at its import.
    return "pytest_django" in sys.modules and (
        not _PYTEST_TELLS.isdisjoint(os.environ) or "pytest" in Path(*sys.argv[:1]).parts[-2:]
    )


_shared: Flags | None = None
_shared_lock = threading.Lock()


def shared() -> Flags:
    """Return this process's flags, made on first use; all middlewares of a process share them."""
    global _shared
    if _shared is None:
        with _shared_lock:
            if _shared is None:
                _shared = Flags()
                _shared.prime()
    return _shared


def in_force(options: LoggingSettings = conf) -> Callable[[], Policy]:
    """Return a function that gives the policy in force; it does no I/O.

    For the start of a process: this waits, for a second at most, for the first answer: a rule
    that keeps bodies out must hold from the first request on.
    """
    if options is conf:
        return shared().get
    flags = Flags(options)
    flags.prime()
    return flags.get


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    # Sent by override_settings; audit_logging.conf has reloaded, as it connected before.
    if setting in (conf.prefix, "BASE_DIR") and _shared is not None:
        try:
            _shared.reset()
        except ImproperlyConfigured as error:
            # Whoever uses the options next says so; to change a setting is not to use it.
            logger.warning("the flags stay as they are: %s", error)


setting_changed.connect(_reconfigure, dispatch_uid="audit_logging.flags")
