"""Regular expressions of endpoint rules: only such as take little time on any path.

Python's engine backtracks and cannot be interrupted: a hostile path that a careless pattern takes
seconds over would stall every request of the process. So the work that a pattern can make is
estimated before it is let in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

#: Paths are matched against rules up to this length, which bounds the time a pattern may take.
MATCHED_PATH = 512
MAX_PATTERN = 200

# Steps of the engine, of some nanoseconds each: of one pattern, and of all rules of a service.
_MOST_STEPS = 4 * MATCHED_PATH**2
_MOST_TOGETHER = 16 * MATCHED_PATH**2


class RuleError(ValueError):
    """A rule that is refused; the message says why and what to do."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a rule's regular expression, compiled.

    :raises RuleError: it is not one, is too long, or could stall on some paths: repetitions inside
        repetitions, as in ``(a+)+``, and several that could each take the same characters, as in
        ``.*a.*b.*``.
    """
    return _compiled(pattern)[0]


def check_together(patterns: Iterable[str]) -> None:
    """Refuse rules each of which is bearable, but not all of them on one path.

    :param patterns: regular expressions that :func:`compile_pattern` lets in.
    :raises RuleError: they could take too long together.
    """
    costs = [(_compiled(pattern)[1], pattern) for pattern in patterns]
    if sum(cost for cost, _ in costs) > _MOST_TOGETHER:
        raise RuleError(
            "All regular expressions together could take too long on some paths; the costliest is "
            f"{max(costs)[1]}. Begin it with ^, write [^/]* instead of .*, or use substring rules."
        )


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], int]:
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"The pattern has {len(pattern)} characters; at most {MAX_PATTERN} do.")
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RuleError(f"Not a regular expression: {error}.") from None
    scans: list[bool] = []
    steps = _ways(list(parsed), [], parsed.state.flags, scans)
    if not _anchored(parsed):
        steps *= MATCHED_PATH
    if any(scans):
        # A repetition that ends at one place alone still walks there, each time.
        steps *= MATCHED_PATH
    if steps > _MOST_STEPS:
        raise RuleError(
            "Its repetitions can share out the same characters in too many ways, which stalls on "
            "some paths. Begin it with ^, write [^/]* instead of .*, or use a substring rule."
        )
    return compiled, steps


def _anchored(parsed: Any) -> bool:
    first = str(parsed[0][1]) if len(parsed) and str(parsed[0][0]) == "AT" else ""
    return first.startswith("AT_BEGINNING") and not parsed.state.flags & re.MULTILINE


def _ways(items: list[Any], after: list[Any], flags: int, scans: list[bool]) -> int:
    """How often, at most, the engine comes by the end of `items` on its way to a failure.

    :param after: what follows `items` in the pattern.
    :param scans: gets an entry for each repetition, whether it walks far to a single end.
    """
    ways = 1
    for index, (operation, argument) in enumerate(items):
        name = str(operation)
        follow = items[index + 1 :] + after
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            if most > 1:
                _refuse_ambiguous(list(body))
                span = min(int(most), MATCHED_PATH) - least + 1
                if name != "POSSESSIVE_REPEAT" and _shared(list(body), follow, flags):
                    ways *= span
                else:
                    scans.append(span > 16 and bool(follow))
            else:
                ways *= 1 + _ways(list(body), follow, flags, scans)
        elif name == "BRANCH":
            ways *= sum(_ways(list(branch), follow, flags, scans) for branch in argument[1])
        elif name == "SUBPATTERN":
            ways *= _ways(list(argument[-1]), follow, flags, scans)
        elif name in ("ASSERT", "ASSERT_NOT"):
            ways *= _ways(list(argument[1]), [], flags, scans)
        elif name == "ATOMIC_GROUP":
            ways *= _ways(list(argument), [], flags, scans)
        elif name.startswith("GROUPREF"):
            raise RuleError("It refers back to a group, which can stall. Write it without.")
    return max(ways, 1)


def _refuse_ambiguous(body: list[Any]) -> None:
    """Refuse a repeated group that can match the same text in several ways: each repetition would
    multiply them."""
    for operation, argument in body:
        name = str(operation)
        if name == "SUBPATTERN":
            _refuse_ambiguous(list(argument[-1]))
        elif name == "BRANCH":
            starts = [_literal(list(branch)[:1]) for branch in argument[1]]
            if None in starts or len(set(starts)) < len(starts):
                raise RuleError(
                    "A repetition holds alternatives that can begin alike, as (a|aa)+ does, which "
                    "can stall on some paths. Write it without, or use a substring rule."
                )
            for branch in argument[1]:
                _refuse_ambiguous(list(branch))
        elif name in ("MAX_REPEAT", "MIN_REPEAT") and argument[0] == argument[1]:
            _refuse_ambiguous(list(argument[2]))
        elif name not in ("LITERAL", "NOT_LITERAL", "IN", "ANY", "CATEGORY", "AT"):
            raise RuleError(
                "A repetition inside a repetition can stall on some paths. Write it without "
                "nesting, for example a+ instead of (a+)+, or use a substring rule."
            )


def _shared(body: list[Any], follow: list[Any], flags: int) -> bool:
    """Whether a repetition of `body` can give back characters to what follows it.

    It cannot when nothing follows, or the end, or a character that `body` never matches: then
    there is one place alone where it can stop.
    """
    if not follow or str(follow[0][1]).startswith("AT_END"):
        return False
    character = _literal(follow)
    if character is None or len(body) != 1:
        return True
    if str(body[0][0]) == "SUBPATTERN":
        return _shared(list(body[0][1][-1]), follow, flags)
    if str(body[0][0]) not in ("LITERAL", "NOT_LITERAL", "IN", "ANY"):
        return True
    one = re._parser.SubPattern(re._parser.State(), body)  # type: ignore[attr-defined]
    matcher = re._compiler.compile(one, flags | re.IGNORECASE)  # type: ignore[attr-defined]
    return matcher.match(chr(character)) is not None


def _literal(items: list[Any]) -> int | None:
    """The one character that `items` must begin with, or None."""
    if not items:
        return None
    name, argument = str(items[0][0]), items[0][1]
    if name == "LITERAL":
        return int(argument)
    if name == "SUBPATTERN":
        return _literal(list(argument[-1]))
    if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and argument[0] > 0:
        return _literal(list(argument[2]))
    return None
