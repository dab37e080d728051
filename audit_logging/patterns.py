"""Regular expressions of endpoint rules: only such as take little time on any path.

Python's engine backtracks and cannot be interrupted: a hostile path that a careless pattern takes
seconds over would stall every request of the process. So the work that a pattern can make is
estimated before it is let in.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

#: Paths are matched against rules up to this length, which bounds the time a pattern may take.
MATCHED_PATH = 512
MAX_PATTERN = 200

#: Nanoseconds that all rules of the admin may take for one path, on the request thread; those of
#: the settings may take as many again.
MOST_TOGETHER = 1_000_000
#: Of these, what a rule takes that is no regular expression, and what calling the engine does.
SUBSTRING, _CALL = 200, 500

# What the engine takes for a step, in nanoseconds, measured on CPython 3.11. It has fast loops for
# characters repeated greedily before one that is given, and none where case does not matter.
_TAKEN = 1.2
_TAKEN_CLASS, _TAKEN_CATEGORY = 2.2, 4.0
_TAKEN_ANY_CASE, _TAKEN_CLASS_ANY_CASE = 7.0, 18.0
_GIVEN_BACK, _TRIED, _TRIED_LAZILY = 1.2, 8.0, 9.0
_GROUP = 20.0


CURE = "Begin it with ^, write [^/]* instead of .*, leave out (?i) and *?, or use substring rules."


class RuleError(ValueError):
    """A rule that is refused; the message says why and what to do."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a rule's regular expression, compiled.

    :raises RuleError: it is not one, is too long, or could stall on some paths: repetitions inside
        repetitions, as in ``(a+)+``, and several that could each take the same characters, as in
        ``.*a.*b.*``.
    """
    return _compiled(pattern)[0]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pattern takes for one path, in nanoseconds, about and at most.

    :ivar fixed: whatever the path is.
    :ivar each: beside that, at each place where `run` stands, with which every match begins.
    """

    fixed: float
    each: float = 0.0
    run: str = ""

    @property
    def alone(self) -> float:
        """What it takes if no other pattern is tried."""
        return self.fixed + self.each * MATCHED_PATH / _spacing(self.run, set(self.run[:1]))


class Together:
    """Rules that are all tried on one path; what begins differently cannot begin at one place."""

    def __init__(self) -> None:
        self._fixed = 0.0
        self._own: dict[str, float] = {}
        self._chains: dict[str, float] = {}

    def take(self, pattern: str | None) -> bool:
        """Add a regular expression, or None for a rule that is none; False: there is no room.

        :raises RuleError: as :func:`compile_pattern` does.
        """
        cost = Cost(SUBSTRING) if pattern is None else _compiled(pattern)[1]
        chains = self._chains
        if cost.run:
            chains = {
                run: chain + (cost.each if run.startswith(cost.run) else 0)
                for run, chain in chains.items()
            }
            chains[cost.run] = cost.each + sum(
                own for run, own in self._own.items() if cost.run.startswith(run)
            )
        first = {run[0] for run in chains}
        places = max((chain / _spacing(run, first) for run, chain in chains.items()), default=0)
        if self._fixed + cost.fixed + places * MATCHED_PATH > MOST_TOGETHER:
            return False
        self._fixed += cost.fixed
        self._chains = chains
        if cost.run:
            self._own[cost.run] = self._own.get(cost.run, 0.0) + cost.each
        return True


def check_together(patterns: Iterable[str | None]) -> None:
    """Refuse rules each of which is bearable, but not all of them on one path.

    :param patterns: regular expressions that :func:`compile_pattern` lets in; None stands for a
        rule that is none.
    :raises RuleError: they could take too long together.
    """
    patterns, together = list(patterns), Together()
    if not all(together.take(pattern) for pattern in patterns):
        costliest = max(filter(None, patterns), key=lambda each: _compiled(each)[1].alone)
        raise RuleError(
            "All regular expressions together could take too long on some paths; the costliest is "
            f"{costliest}. {CURE}"
        )


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> tuple[re.Pattern[str], Cost]:
    if len(pattern) > MAX_PATTERN:
        raise RuleError(f"The pattern has {len(pattern)} characters; at most {MAX_PATTERN} do.")
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RuleError(f"Not a regular expression: {error}.") from None
    # Only whether there is a match matters, and where something stands something stands before it.
    shorter = _LEADING.sub(r"\1", pattern)
    if shorter != pattern:
        return _compiled(shorter)
    flags = parsed.state.flags
    anchored = _anchored(parsed)
    _, each = _Estimate(depth=0 if anchored else 1).of(list(parsed), [], flags)
    run = "".join(map(chr, _run(list(parsed))))
    if anchored:
        cost = Cost(_CALL + each)
    elif run and not flags & re.IGNORECASE:
        cost = Cost(_CALL + _TAKEN * MATCHED_PATH, each, run)
    else:
        cost = Cost(_CALL + (20 + each) * MATCHED_PATH / _spacing(run, set(run[:1])))
    if cost.alone > MOST_TOGETHER:
        raise RuleError(
            "Its repetitions can share out the same characters in too many ways, which stalls on "
            f"some paths. {CURE}"
        )
    return compiled, cost


#: What begins an expression and finds nothing.
_LEADING = re.compile(r"^(\(\?[aims]+\))?(?:\.\*\??)+(?!\+)")


def _anchored(parsed: Any) -> bool:
    first = str(parsed[0][1]) if len(parsed) and str(parsed[0][0]) == "AT" else ""
    return first.startswith("AT_BEGINNING") and not parsed.state.flags & re.MULTILINE


def _run(items: list[Any]) -> list[int]:
    """The literal characters that `items` begin with."""
    run = []
    for operation, argument in items:
        if str(operation) != "LITERAL":
            break
        run.append(argument)
    return run


def _period(run: list[int]) -> int:
    """How far apart two places must be at least, at both of which `run` stands; 1 for none."""
    return next((n for n in range(1, len(run)) if run[n:] == run[:-n]), len(run) or 1)


def _spacing(run: str, first: set[str]) -> int:
    """How far behind a place where `run` stands the next may be that begins with one of `first`."""
    return next((n for n in range(1, len(run)) if run[n] in first), len(run) or 1)


class _Estimate:
    """What the engine takes, at most, on its way to a failure: an estimate from above.

    :ivar depth: how many choices of one place in the path were made so far. Each leaves those
        behind it the rest of the path only, which is what keeps k of them from making L**k ways.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def of(
        self, items: list[Any], after: list[Any], flags: int, near: bool = True
    ) -> tuple[float, float]:
        """Return how often the end of `items` is come by for each time that their beginning is,
        and the nanoseconds spent.

        :param after: what follows `items` in the pattern.
        :param near: whether it does so in what the engine executes, too.
        """
        ways, spent, index = 1.0, 0.0, 0
        before: list[int] = []
        while index < len(items):
            operation, argument = items[index]
            run = _run(items[index:])
            if run:
                # Of a repeated search for it, only so many partial finds overlap at a character.
                step = _TAKEN_ANY_CASE if flags & re.IGNORECASE else 3.0
                spent += ways * step * run.count(run[0])
                if ways > 1:
                    ways = max(1.0, ways / _period(run))
                index += len(run)
                before = run
                continue
            index += 1
            times, each = self._one(
                str(operation),
                argument,
                (items[index:] + after, _run(items[index:] + (after if near else []))),
                flags,
                before,
            )
            spent += ways * each
            ways *= max(times, 1.0)
            before = []
        return ways, spent

    def _one(
        self, name: str, argument: Any, behind: _Behind, flags: int, before: list[int]
    ) -> tuple[float, float]:
        follow, _ = behind
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            return self._repeat(name, argument, behind, flags, before)
        if name == "BRANCH":
            each = [self.of(list(branch), follow, flags, False) for branch in argument[1]]
            return sum(way for way, _ in each), sum(spent + _TRIED for _, spent in each)
        if name == "SUBPATTERN":
            group, more, less, body = argument
            ways, spent = self.of(list(body), follow, (flags | more) & ~less, group is None)
            return ways, spent + _TRIED
        if name in ("ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
            body = argument if name == "ATOMIC_GROUP" else argument[1]
            # What is within is not come back to.
            depth = self.depth
            _, spent = self.of(list(body), [], flags)
            self.depth = depth
            return 1.0, spent + _TRIED
        if name.startswith("GROUPREF"):
            raise RuleError("It refers back to a group, which can stall. Write it without.")
        return 1.0, _TRIED / 2 + _taken((name, argument), flags)

    def _repeat(
        self, name: str, argument: Any, behind: _Behind, flags: int, before: list[int]
    ) -> tuple[float, float]:
        follow, run = behind
        least, most, body = int(argument[0]), int(argument[1]), list(argument[2])
        if most <= 1:
            ways, spent = self.of(body, follow, flags, False)
            return 1 + ways, spent + 2 * _TRIED
        _refuse_ambiguous(body)
        span: float = min(most, MATCHED_PATH)
        whole = span == MATCHED_PATH
        if whole:
            span /= self.depth + 1
        single = len(body) == 1 and str(body[0][0]) in _SINGLE
        if single:
            taken = _taken((str(body[0][0]), body[0][1]), flags)
        else:
            taken = _GROUP + self.of(body, follow, flags, False)[1]
            # Of longer bodies there are fewer.
            span = max(1.0, span / max(1, argument[2].getwidth()[0]))
        if name == "POSSESSIVE_REPEAT" or least == most or not _shared(body, follow, flags):
            if name != "MIN_REPEAT" and any(not _takes(body, each, flags) for each in before):
                # It ends where what is before it begins again: together they walk the path once.
                span = min(span, 2 * _period(before))
            if name == "MIN_REPEAT":
                taken += _TRIED_LAZILY
            elif follow and least != most and name != "POSSESSIVE_REPEAT":
                # It gives back all the same, to find that what follows is at no other place.
                quick = run and single and not flags & re.IGNORECASE
                taken += _GIVEN_BACK if quick else _TRIED
            return 1.0, span * taken
        if whole:
            self.depth += 1
        if name == "MIN_REPEAT":
            return span, span * (taken + _TRIED_LAZILY)
        if not run or not single or flags & re.IGNORECASE:
            return span, span * (taken + _TRIED)
        # A single character at the pattern's end is found once.
        last = len(run) == len(follow) == 1
        return (1.0 if last else span), span * (taken + _GIVEN_BACK + (0 if last else _TRIED))


#: What follows in the pattern, and the characters that the engine looks for next.
_Behind = tuple[list[Any], list[int]]

_SINGLE = ("LITERAL", "NOT_LITERAL", "IN", "ANY")


def _taken(item: tuple[str, Any], flags: int) -> float:
    """The nanoseconds that one character takes."""
    name, argument = item
    any_case = flags & re.IGNORECASE
    if name == "IN":
        kinds = [str(each[0]) for each in argument]
        categories = _TAKEN_CATEGORY * kinds.count("CATEGORY")
        return categories + (_TAKEN_CLASS_ANY_CASE if any_case else _TAKEN_CLASS)
    return _TAKEN_ANY_CASE if any_case and name != "ANY" else _TAKEN


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
    return character is None or _takes(body, character, flags)


def _takes(body: list[Any], character: int, flags: int) -> bool:
    """Whether `body` may match a character, be it in another case."""
    if len(body) != 1:
        return True
    if str(body[0][0]) == "SUBPATTERN":
        return _takes(list(body[0][1][-1]), character, flags)
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
