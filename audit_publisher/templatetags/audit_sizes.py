"""`|audit_size`: sizes in templates, as the settings count them."""

from __future__ import annotations

from django import template

from ..operating.sizes import size

register = template.Library()
register.filter("audit_size", size)
