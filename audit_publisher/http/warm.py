"""What a server's process does before its first request, so that no request has to wait for it."""

from __future__ import annotations

import logging
import os

from .. import codec, routing
from ..durable import control
from ..exceptions import RegistryError, RegistryUnavailable
from ..identity import consumers
from ..publish import get_publisher

logger = logging.getLogger(__name__)

#: The process in which it was done.
_warm = 0


def warm_up() -> None:
    """Read keys and routes, ask for the schema's id, and look at the regions in the background.

    Each once: what does not answer now is asked again later, and readiness says what is missing.
    """
    global _warm
    if _warm == os.getpid():
        return
    _warm = os.getpid()
    consumers.refresh()
    routing.refresh()
    control.refresh()
    for topic in routing.topics():
        try:
            codec.schema_ids.get(topic)
        except (RegistryError, OSError) as error:
            logger.warning("The schema of topic %s is not known yet: %s", topic, error)
            if isinstance(error, RegistryUnavailable):
                # It would not answer for the others either, and each would take its time.
                break
    get_publisher().start()
