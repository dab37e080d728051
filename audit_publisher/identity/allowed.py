"""Lists of names that an operator allows: names, prefixes such as ``shop-*``, or ``*`` for all."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..names import CONTROL

_LINE_END = re.compile(r"\r?\n")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Which names are allowed; made by :meth:`parse`. As it is made by default: none.

    :ivar everything: whether every name is.
    :ivar names: names that are, exactly.
    :ivar prefixes: beginnings of names that are.
    """

    everything: bool = False
    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """The list in `text`, one name a line; blank lines do not count.

        :raises ValueError: a line is no name, with a sentence that says which and why.
        """
        names, prefixes = set(), set()
        # At line feeds alone: what only looks like one must not hide a name from who reads it.
        for line in _LINE_END.split(text):
            name = line.strip(" \t")
            if not name:
                continue
            if "*" in name[:-1]:
                raise ValueError(
                    f"{name!r}: a * stands alone (every name) or at the end (shop-*: every name "
                    "that begins with shop-)."
                )
            if CONTROL.search(name):
                raise ValueError(f"{name!r} holds a control character.")
            if name.endswith("*"):
                prefixes.add(name[:-1])
            else:
                names.add(name)
        if "" in prefixes:
            return cls(everything=True)
        return cls(names=frozenset(names), prefixes=tuple(sorted(prefixes)))

    def __contains__(self, name: object) -> bool:
        """Whether `name` is allowed."""
        if self.everything or name in self.names:
            return True
        # Most lists have no prefix.
        return bool(self.prefixes) and isinstance(name, str) and name.startswith(self.prefixes)

    def lines(self) -> list[str]:
        """The list as it would be written."""
        if self.everything:
            return ["*"]
        return sorted([*self.names, *(f"{prefix}*" for prefix in self.prefixes)])


EVERY = Allowed(everything=True)
