"""What `manage.py audit_doctor` examines of the publisher."""

from . import disk, keys, regions, registry, tls

__all__ = ["disk", "keys", "regions", "registry", "tls"]
