"""Realistic requests to the example service: the same ones for the same seed.

Every call has an id of its own, sent as ``WM-QOS.CORRELATION-ID``: the id that partners quote
when they ask about a request. It survives into the event's headers, so each call can be matched
with exactly one row of the lake.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from examples.inventory_api.catalog import CARRIERS, ITEMS, SHIPMENTS, STORES

#: Country → the value of the site header.
SITES = {
    "US": "1704989259133687000",
    "CA": "1704989474816248000",
    "MX": "1704989390144984000",
}
#: Country → the partner that calls from there.
CONSUMERS = {
    "US": "5f1d6a30-8c1e-4a53-9b1f-0b7d6c2e9a11",
    "CA": "c2a7e9d4-1f60-4b2b-8e53-7a9f3d5b6c22",
    "MX": "e83b4c17-65da-4d0f-a2c8-2f41b09d7e33",
}
#: Everything that must never be seen in the lake.
SECRETS = {
    "bearer token": "tok_live_6yq1v8Zr3mKd",
    "card number": "4556737586899855",
    "portal password": "Dock&Door!2291",
    "access token": "eyJhY2Nlc3MiOiJxdWVyeSJ9.q8Zl2",
}

_CURRENCY = {"US": "USD", "CA": "CAD", "MX": "MXN"}
_DRIVERS = {
    "US": ("Dana Whitfield", "Marcus Lee", "Tanya Ortiz"),
    "CA": ("Geneviève Côté", "Raj Sandhu", "Noah Tremblay"),
    "MX": ("José Núñez", "Ximena Ibáñez", "Raúl Peña"),
}
_NOTES = (
    "Two cases damaged on the pallet's lower left.",
    "Recuento pedido por la tienda: 3 cajas mojadas, señalización dañada.",
    "Étiquette de prix manquante — à corriger avant l'ouverture ☕",
    "在庫を再確認しました。冷蔵庫 No. 4 📦",
    # A line separator that is not a newline: text copied from a spreadsheet has it.
    "Pasillo 4\u2028Pasillo 5: falta señalización\u0085",
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to be sent.

    :ivar id: unique; the value of its correlation id header.
    :ivar kind: ``json``, ``form``, ``empty``, ``unicode``, ``gzip``, ``large`` …
    :ivar path: with query.
    :ivar expected: the status the service answers.
    :ivar site: value of the site header, or None when it has none.
    :ivar consumer: the calling partner's id.
    :ivar country: whose bucket its row belongs in: US, CA or MX.
    """

    id: str
    kind: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    expected: int
    site: str | None
    consumer: str
    country: str


@dataclass
class _Draft:
    kind: str
    method: str
    path: str
    expected: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def calls(count: int, seed: int = 20250310) -> list[Call]:
    """Return `count` requests: the same ones for the same arguments.

    Every kind occurs once `count` is 40 or more.
    """
    rng = random.Random(seed)
    makers = [maker for maker, weight in _MIX for _ in range(weight)]
    # One of each first, so that even a short run shows all; then by weight; then mixed.
    chosen = [maker for maker, _ in _MIX][:count]
    chosen += [rng.choice(makers) for _ in range(count - len(chosen))]
    rng.shuffle(chosen)
    return [_call(rng, maker) for maker in chosen]


def _call(rng: random.Random, maker: Callable[[random.Random, str], _Draft]) -> Call:
    country = rng.choice(("US", "US", "CA", "MX"))
    # Some callers in the US send no site header.
    site = None if country == "US" and rng.random() < 0.3 else SITES[country]
    draft = maker(rng, country)
    identity = f"{rng.getrandbits(128):032x}"
    headers = {
        "WM-CONSUMER.ID": CONSUMERS[country],
        "WM-QOS.CORRELATION-ID": identity,
        "WM-SVC.NAME": "inventory-api",
        "WM-SVC.VERSION": "1.4.2",
        "WM-SVC.ENV": "prod",
        "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
        "User-Agent": "partner-sync/3.2",
        "Accept": "application/json",
        **draft.headers,
    }
    if site is not None:
        headers["WM-SITE-ID"] = site
    return Call(
        id=identity,
        kind=draft.kind,
        method=draft.method,
        path=draft.path,
        headers=tuple(headers.items()),
        body=draft.body,
        expected=draft.expected,
        site=site,
        consumer=CONSUMERS[country],
        country=country,
    )


# -- what partners send ---------------------------------------------------------------------


def _json(value: Any, **options: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, **options).encode()


def _json_draft(kind: str, path: str, expected: int, value: Any) -> _Draft:
    return _Draft(kind, "POST", path, expected, _json(value), {"Content-Type": "application/json"})


def _store(rng: random.Random, country: str) -> int:
    return rng.choice([store.number for store in STORES.values() if store.country == country])


def _item(rng: random.Random, country: str) -> str:
    currency = _CURRENCY[country]
    return rng.choice([item.gtin for item in ITEMS.values() if item.currency == currency])


def _shipment(rng: random.Random) -> str:
    return rng.choice(tuple(SHIPMENTS))


def _stock(rng: random.Random, country: str) -> dict[str, Any]:
    item = ITEMS[_item(rng, country)]
    return {
        "store": _store(rng, country),
        "item": item.gtin,
        "quantity": rng.randint(0, 480),
        "unit_price": str(item.price),
        "currency": item.currency,
    }


def _count(rng: random.Random, country: str) -> _Draft:
    return _json_draft("json", "/iac/v1/inventory", 201, _stock(rng, country))


def _count_unicode(rng: random.Random, country: str) -> _Draft:
    stock = _stock(rng, country) | {"note": rng.choice(_NOTES)}
    return _json_draft("unicode", "/iac/v1/inventory", 201, stock)


def _count_refused(rng: random.Random, country: str) -> _Draft:
    wrong = rng.choice(({"store": 9999}, {"item": "7874205145"}, {"quantity": -4}))
    return _json_draft("refused", "/iac/v1/inventory", 400, _stock(rng, country) | wrong)


def _count_broken(rng: random.Random, country: str) -> _Draft:
    draft = _json_draft("broken", "/iac/v1/inventory", 400, _stock(rng, country))
    draft.body = draft.body[:-9]
    return draft


def _count_empty(rng: random.Random, country: str) -> _Draft:
    headers = {"Content-Type": "application/json"}
    return _Draft("empty", "POST", "/iac/v1/inventory", 400, headers=headers)


def _release(rng: random.Random, country: str) -> _Draft:
    return _Draft("empty", "DELETE", f"/iac/v1/inventory/{_item(rng, country)}", 204)


def _look(rng: random.Random, country: str) -> _Draft:
    return _Draft("get", "GET", f"/iac/v1/inventory/{_item(rng, country)}", 200)


def _look_token(rng: random.Random, country: str) -> _Draft:
    query = urlencode({"access_token": SECRETS["access token"], "fields": "stores"})
    return _Draft("query", "GET", f"/iac/v1/inventory/{_item(rng, country)}?{query}", 200)


def _availability(rng: random.Random, country: str) -> _Draft:
    return _Draft("async", "GET", f"/iac/v1/availability/{_item(rng, country)}", 200)


def _forecast(rng: random.Random, country: str) -> _Draft:
    days = rng.choice((7, 14, 28))
    return _Draft("get", "GET", f"/iac/v1/forecast/{_item(rng, country)}?days={days}", 200)


def _forecast_crash(rng: random.Random, country: str) -> _Draft:
    return _Draft("crash", "GET", f"/iac/v1/forecast/{_item(rng, country)}?days=0", 500)


def _lines(rng: random.Random, country: str, count: int) -> dict[str, Any]:
    store = _store(rng, country)
    return {
        "batch": f"NIGHT-{store}-{rng.randint(100_000, 999_999)}",
        "lines": [_stock(rng, country) for _ in range(count)],
    }


def _bulk(rng: random.Random, country: str) -> _Draft:
    return _json_draft("json", "/iac/v1/inventory/bulk", 200, _lines(rng, country, 12))


def _bulk_large(rng: random.Random, country: str) -> _Draft:
    # About 300 KB.
    value = _lines(rng, country, 2_850)
    return _json_draft("large", "/iac/v1/inventory/bulk", 200, value)


def _snapshot_gzip(rng: random.Random, country: str) -> _Draft:
    draft = _json_draft("gzip", "/iac/v1/inventory/snapshot", 200, _lines(rng, country, 60))
    # No time in the gzip header: the same bytes for the same seed.
    draft.body = gzip.compress(draft.body, mtime=0)
    draft.headers["Content-Encoding"] = "gzip"
    return draft


def _track(rng: random.Random, country: str) -> _Draft:
    return _Draft("get", "GET", f"/dsd/v1/shipments/{_shipment(rng)}", 200)


def _track_unknown(rng: random.Random, country: str) -> _Draft:
    return _Draft("missing", "GET", f"/dsd/v1/shipments/SHP{rng.randint(10**7, 4 * 10**7)}", 404)


def _events(rng: random.Random, country: str) -> _Draft:
    return _Draft("stream", "GET", f"/dsd/v1/shipments/{_shipment(rng)}/events", 200)


def _book(rng: random.Random, country: str) -> _Draft:
    form = {
        "dock": f"D{rng.randint(1, 24):02d}",
        "slot": f"{rng.randint(5, 20):02d}:30",
        "driver": rng.choice(_DRIVERS[country]),
        "carrier": rng.choice(tuple(CARRIERS)),
        "password": SECRETS["portal password"],
    }
    return _Draft(
        "form",
        "POST",
        f"/dsd/v1/shipments/{_shipment(rng)}/appointment",
        200,
        urlencode(form).encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )


def _payment(rng: random.Random, country: str) -> dict[str, Any]:
    return {
        "purchase_order": SHIPMENTS[_shipment(rng)].purchase_order,
        "amount": f"{rng.randint(4_500, 280_000) / 100:.2f}",
        "currency": _CURRENCY[country],
        "card": {"number": SECRETS["card number"], "expires": "11/28", "holder": "NORTHFIELD"},
    }


def _pay(rng: random.Random, country: str) -> _Draft:
    draft = _json_draft("secret", "/dsd/v1/payments", 201, _payment(rng, country))
    draft.headers["Authorization"] = f"Bearer {SECRETS['bearer token']}"
    return draft


def _pay_unknown(rng: random.Random, country: str) -> _Draft:
    return _json_draft("unauthorised", "/dsd/v1/payments", 401, _payment(rng, country))


def _nowhere(rng: random.Random, country: str) -> _Draft:
    return _Draft("missing", "GET", f"/iac/v2/inventory/{_item(rng, country)}", 404)


_MIX: tuple[tuple[Callable[[random.Random, str], _Draft], int], ...] = (
    (_count, 22),
    (_count_unicode, 6),
    (_count_refused, 6),
    (_count_broken, 1),
    (_count_empty, 2),
    (_release, 3),
    (_look, 12),
    (_look_token, 3),
    (_availability, 5),
    (_forecast, 3),
    (_forecast_crash, 2),
    (_bulk, 5),
    (_bulk_large, 2),
    (_snapshot_gzip, 4),
    (_track, 12),
    (_track_unknown, 3),
    (_events, 4),
    (_book, 5),
    (_pay, 4),
    (_pay_unknown, 2),
    (_nowhere, 1),
)
