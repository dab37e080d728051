"""What the admin says of consumers and their public keys, as this process last read it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from django.core.signals import setting_changed
from django.db import close_old_connections

from audit_logging.background import Snapshot

from ..conf import PublisherSettings, conf
from .allowed import Allowed
from .keys import load_public_key

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """One public key; times in epoch seconds."""

    public_key: Any
    not_before: float | None
    not_after: float | None
    revoked: bool


@dataclass(frozen=True, slots=True)
class KnownConsumer:
    """What the admin says of a consumer.

    :ivar enforcement: of its signature: off, report, enforce or inherit.
    :ivar message_only: whether the legacy signature is not enough.
    :ivar replay: of what was taken before: off, report, enforce or inherit.
    :ivar services: whom it may publish for.
    :ivar callers: whom its events may name, beside itself.
    """

    active: bool
    enforcement: str
    message_only: bool
    replay: str
    services: Allowed
    callers: Allowed
    keys: Mapping[str, Key]


@lru_cache(maxsize=4096)
def _parsed(pem: str) -> Any:
    return load_public_key(pem)


def _load() -> Mapping[str, KnownConsumer]:
    from ..models import Consumer

    found = {}
    for consumer in Consumer.objects.prefetch_related("keys"):
        keys = {}
        for key in consumer.keys.all():
            try:
                public_key = _parsed(key.public_key)
            except ValueError as error:
                logger.error("%s cannot be used: %s", key, error)
                continue
            keys[key.key_version] = Key(
                public_key,
                key.not_before.timestamp() if key.not_before else None,
                key.not_after.timestamp() if key.not_after else None,
                key.revoked,
            )
        found[consumer.consumer_id] = KnownConsumer(
            active=consumer.active,
            enforcement=consumer.enforcement,
            message_only=consumer.schemes == Consumer.Schemes.MESSAGE,
            replay=consumer.replay,
            services=_allowed(consumer.services, f"services of {consumer}"),
            callers=_allowed(consumer.callers, f"consumers in the events of {consumer}"),
            keys=keys,
        )
    return found


def _allowed(read: Callable[[], Allowed], what: str) -> Allowed:
    try:
        return read()
    except ValueError as error:
        # Saved past its check. It must not keep every other change from being read.
        logger.error("The list of %s cannot be used, so that it allows none: %s", what, error)
        return Allowed()


def _snapshot() -> Snapshot[Mapping[str, KnownConsumer]]:
    return Snapshot(
        _load,
        initial={},
        interval=conf.REFRESH_SECONDS,
        name="audit consumers and keys",
        load_first=True,
        # The background thread keeps its connection; one that broke must not be used for ever.
        # A request's, or a test's, is its own to close.
        before=close_old_connections,
    )


_consumers = _snapshot()


def get() -> Mapping[str, KnownConsumer]:
    """Every consumer by its id, as last read."""
    return _consumers.get()


def refresh() -> bool:
    """Read consumers and keys now; return whether that worked."""
    return _consumers.refresh()


def known() -> bool:
    """Whether consumers and keys were read at least once."""
    _consumers.get()
    return _consumers.loaded_at is not None


def _reconfigure(*, setting: str, **kwargs: Any) -> None:
    global _consumers
    if setting == PublisherSettings.prefix:
        _consumers.stop(0)
        _consumers = _snapshot()


setting_changed.connect(_reconfigure)
