"""What a server's process does before its first request, so that no request has to wait for it."""

from __future__ import annotations

import logging

from . import codec, consumers, routing
from .exceptions import RegistryError
from .publish import get_publisher

logger = logging.getLogger(__name__)


def warm_up() -> None:
    """Read keys and routes, ask for the schema's id, and look at the regions in the background.

    Each once: what does not answer now is asked again later, and readiness says what is missing.
    """
    consumers.refresh()
    routing.refresh()
    for topic in routing.topics():
        try:
            codec.schema_ids.get(topic)
        except (RegistryError, OSError) as error:
            logger.warning("The schema of topic %s is not known yet: %s", topic, error)
    get_publisher().start()
