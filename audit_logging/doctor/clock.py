"""Our clock against those of others."""

from __future__ import annotations

from collections.abc import Iterator

from .examinations import Finding, failure, ok, warning

#: Of the publisher, unless it is configured here: how far a signer's clock may be ahead of its
#: own, and how old a signature may be. Seconds.
AHEAD, BEHIND = 30.0, 180.0
#: A clock that is kept by NTP is never off by so much.
ODD = 2.0


def compare(
    whose: str,
    theirs: float,
    before: float,
    after: float,
    *,
    ahead: float = AHEAD,
    behind: float = BEHIND,
    step: float = 1.0,
) -> Iterator[Finding]:
    """Say how far our clock is from another's.

    :param theirs: what it said, in epoch seconds, when ours showed a time from `before` to
        `after`; rounded down to a whole `step`.
    """
    if theirs > after:
        skew = after - theirs
    elif before > theirs + step:
        skew = before - theirs - step
    else:
        skew = 0.0
    if not abs(skew) > ODD:
        yield ok(f"agrees with that of {whose}, within {after - before + step:.1f} s")
        return
    which = "ahead of" if skew > 0 else "behind"
    said = f"Our clock is {abs(skew):,.0f} s {which} that of {whose}."
    cure = "Set both by NTP: timedatectl set-ntp true, or chronyc tracking to see which is off."
    if skew > ahead or -skew > behind:
        yield failure(
            f"{said} Signatures may be {ahead:g} s ahead and {behind:g} s old.",
            cure,
        )
    else:
        yield warning(said, cure)
