"""The names that tell of a secret, as one service has them."""

from __future__ import annotations

import html.entities
import re
from functools import lru_cache

from .beside import is_form_value_key, is_value_key
from .quiet import may_hold_credential
from .sensitive import normalise_key, sensitive_key

# What programs call things. Longer ones, and those of many digits, are no names that come again.
_NAME = re.compile(r"(?:[A-Za-z_]|\d(?!\d?\d\d))(?:[A-Za-z_]|[.-](?!-)|\d(?!\d\d)){0,39}", re.ASCII)
# «&copy=1» is read as «©=1» where markup is.
_REFERENCES = tuple(name for name in html.entities.html5 if not name.endswith(";"))
_MOST = 4096
_LONGEST_VALUE = 300


class Names:
    """Tells which names tell; shared by all threads of a process.

    :param extra: an operator's own names, normalised.

    :ivar plain: names known to tell nothing, and to be nothing by themselves. Bounded; only what
        looks like a name is kept.
    :ivar plain_parameters: those that can follow «&», too.
    :ivar told: names that tell nothing, but what stands under them is told by what stands beside.
    :ivar quiet: values of headers that hold no secret, as most are sent again and again.
    :ivar usual: whether times and addresses can be taken for what they are: not where an operator
        gave a name that is part of one.
    """

    def __init__(self, extra: frozenset[str]) -> None:
        self.extra = extra
        self.plain: set[str] = set()
        self.plain_parameters: set[str] = set()
        self.told: set[str] = set()
        self.quiet: set[str] = set()
        self.usual = not any(
            name in ("http", "https") or any(letter.isdigit() for letter in name) for name in extra
        )

    def is_sensitive(self, key: str) -> bool:
        """Whether a value under `key` is a secret, whatever it is."""
        return sensitive_key(key, self.extra)

    def is_plain(self, name: str) -> bool:
        """Whether `name` tells nothing of any value, and is quiet as a text; remembers it."""
        if name in self.plain:
            return True
        if (
            not _NAME.fullmatch(name)
            or is_value_key(name)
            or self.is_sensitive(name)
            or may_hold_credential(name)
        ):
            return False
        if len(self.plain) >= _MOST:
            # Someone makes names up. Those in use come back at once.
            self.plain = set()
        self.plain.add(name)
        return True

    def is_told(self, name: str) -> bool:
        """Whether a value under `name` is a secret only by what stands beside it; remembers it."""
        if name in self.told:
            return True
        if not is_value_key(name) or self.is_sensitive(name):
            return False
        if len(self.told) >= _MOST:
            self.told = set()
        self.told.add(name)
        return True

    def remember_quiet(self, value: str) -> None:
        """Remember a header's value that holds no secret."""
        if len(value) > _LONGEST_VALUE:
            return
        if len(self.quiet) >= _MOST:
            self.quiet = set()
        self.quiet.add(value)

    def is_plain_parameter(self, name: str) -> bool:
        """Whether `name` is plain in ``a=b&name=…``, too; remembers it."""
        if name in self.plain_parameters:
            return True
        if name.startswith(_REFERENCES):
            return False
        if not self.is_plain(name) and not self._is_plain_in_forms(name):
            return False
        if len(self.plain_parameters) >= _MOST:
            self.plain_parameters = set()
        self.plain_parameters.add(name)
        return True

    def _is_plain_in_forms(self, name: str) -> bool:
        # ?from=…&to=…
        return not is_form_value_key(name) and self.is_told(name)


@lru_cache(maxsize=8)
def names_of(extra_keys: tuple[str, ...]) -> Names:
    """Return the names of a service that adds `extra_keys`, in any spelling."""
    return Names(frozenset(normalise_key(key) for key in extra_keys))
