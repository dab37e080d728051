"""What a recorder adds to a request's time on the request path, paired with a bare service.

Each recorder and its own bare service are two processes, so that nobody's background threads fall
into another's requests. They take turns, block by block, at random times as callers come; which
goes first alternates. In each round the quantiles of the two are compared; the figure is the
median of the rounds.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from .conductor import Died, Figure, Process, folder, pair, quantile
from .contenders import ALL, OURS, Contender
from .service import Spec

_BLOCK = 250
#: Requests without a pause, in one go: so many that the background falls into them.
_HOT = 1000


@dataclass(frozen=True)
class Added:
    """Nanoseconds that a recorder adds to a request; `bare` is the service without it.

    `hot` and `hot_p99` are for requests that follow each other at once, and find the processor's
    caches as the one before left them; all else is with callers that pause.
    """

    contender: str
    bodies: bool
    mode: str
    chain: bool
    median: Figure
    p99: Figure
    cpu: Figure
    hot: Figure
    hot_p99: Figure
    bare_median: Figure
    bare_p99: Figure


def measure(
    *,
    mode: str,
    chain: bool,
    rounds: int,
    requests: int,
    pause: float,
    who: tuple[Contender, ...] = ALL,
) -> list[Added]:
    """Measure every contender side by side: each round goes over all of them.

    :param chain: with Django's default middleware, or the recorder alone.
    :param requests: of each process in each round; ours makes four times as many, as its figures
        are small.
    :param pause: seconds between requests, on average.
    """
    with folder() as root, ExitStack() as stack:
        pairs: dict[str, tuple[Process, Process]] = {}
        for each in who:
            spec = Spec(each.name, True, str(root / each.name), mode, chain)
            try:
                both = stack.enter_context(pair(spec))
                for process in both:
                    process.warm_up()
            except Died as error:
                print(f"{each.name} does not run ({mode}): {error}")
                continue
            pairs[each.name] = both
        seen: dict[str, list[list[float]]] = {name: [] for name in pairs}
        for number in range(rounds):
            for name, both in pairs.items():
                ours = name == OURS.name
                times, hot = (requests * 4, _HOT) if ours else (requests, _HOT // 5)
                seen[name].append(_round(both, times, pause, number, hot))
        return [
            Added(
                each.name,
                each.bodies,
                mode,
                chain,
                *map(Figure.of, zip(*seen[each.name], strict=True)),
            )
            for each in who
            if each.name in seen
        ]


def _round(
    both: tuple[Process, Process], requests: int, pause: float, number: int, at_once: int
) -> list[float]:
    """One round: what was added, in the order of :class:`Added`."""
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for block in range(max(1, requests // _BLOCK)):
        for which in (0, 1) if (block + number) % 2 else (1, 0):
            answer = both[which].tell(
                "paced", requests=min(_BLOCK, requests), pause=pause, seed=number * 1000 + block
            )
            wall[which].extend(answer["wall"])
            cpu[which].extend(answer["cpu"])
    hot: tuple[list[float], list[float]] = ([], [])
    for which in (0, 1, 1, 0):
        answer = both[which].tell("paced", requests=at_once, pause=0, seed=0)
        hot[which].extend(answer["wall"][at_once // 10 :])
    median = [quantile(values, 0.5) for values in wall]
    p99 = [quantile(values, 0.99) for values in wall]
    cost = [quantile(values, 0.5) for values in cpu]
    return [
        median[1] - median[0],
        p99[1] - p99[0],
        cost[1] - cost[0],
        quantile(hot[1], 0.5) - quantile(hot[0], 0.5),
        quantile(hot[1], 0.99) - quantile(hot[0], 0.99),
        median[0],
        p99[0],
    ]
