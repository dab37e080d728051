"""The secrets that the traffic carried, and what the lake holds in their place."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus

from .traffic import SECRETS, Call

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Redacted:
    """One secret: where it was sent, and what is stored there."""

    name: str
    sent: str
    stored: str


def what_was_redacted(batch: Sequence[Call], rows: Mapping[str, Row]) -> list[Redacted]:
    """Return an example of each kind of place that a secret was sent in."""
    found = []
    for name, secret in SECRETS.items():
        for call in batch:
            place = _place(call, secret)
            if place is not None and call.id in rows:
                found.append(
                    Redacted(name, *_difference(place[0], _stored(rows[call.id], place[1])))
                )
                break
    return found


def _difference(sent: str, stored: str) -> tuple[str, str]:
    """The parts of two texts, JSON objects or key=value pairs, that are not the same."""
    try:
        before, after = json.loads(sent), json.loads(stored)
        changed = [key for key in before if before[key] != after[key]]
        return tuple(  # type: ignore[return-value]
            json.dumps({key: side[key] for key in changed}, ensure_ascii=False)
            for side in (before, after)
        )
    except (ValueError, KeyError, TypeError):
        pass
    pairs = list(zip(_pairs(sent), _pairs(stored), strict=False))
    changed_pairs = [pair for pair in pairs if pair[0] != pair[1]]
    if len(changed_pairs) < len(pairs):
        return "&".join(one for one, _ in changed_pairs), "&".join(two for _, two in changed_pairs)
    return sent, stored


def _pairs(text: str) -> list[str]:
    return text.replace("?", "?&", 1).split("&")


def _place(call: Call, secret: str) -> tuple[str, str] | None:
    """Return (the text around the secret, where it stands) if `call` carries it."""
    for name, value in call.headers:
        if secret in value:
            return f"{name}: {value}", name.lower()
    if secret in call.path:
        return call.path, "path"
    body = call.body.decode("latin-1")
    if secret in body or quote_plus(secret) in body:
        return call.body.decode(), "request_body"
    return None


def _stored(row: Row, place: str) -> str:
    if place in ("path", "request_body"):
        return str(row[place])
    return dict(row["headers"]).get(place, f"(the header {place} is not kept)")


def secrets_found(rows: Iterable[Row]) -> Iterator[str]:
    """Yield a sentence for each secret that a row holds in clear."""
    for row in rows:
        text = json.dumps(row, default=str, ensure_ascii=False)
        for name, secret in SECRETS.items():
            if secret in text or quote_plus(secret) in text:
                yield f"The {name} is stored in clear, in the row of {row['path']}."
