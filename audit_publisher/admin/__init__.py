"""Admin of the publisher: what an operator decides, and what an operator looks at."""

from .consumers import ConsumerAdmin, ConsumerKeyAdmin, ConsumerKeyInline, TopicRouteAdmin
from .regions import RegionAdmin
from .spool import SpoolAdmin
from .trail import TrailAdmin

__all__ = [
    "ConsumerAdmin",
    "ConsumerKeyAdmin",
    "ConsumerKeyInline",
    "RegionAdmin",
    "SpoolAdmin",
    "TopicRouteAdmin",
    "TrailAdmin",
]
