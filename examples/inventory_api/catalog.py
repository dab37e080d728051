"""The service's whole world: stores, items, carriers and shipments. Fixed, so answers repeat."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is sold.

    :ivar gtin: its 14-digit trade item number.
    :ivar supplier: the supplier's number.
    """

    gtin: str
    description: str
    supplier: str
    price: Decimal
    currency: str
    pack: int


@dataclass(frozen=True, slots=True)
class Store:
    """A store or a distribution centre. `country` is US, CA or MX."""

    number: int
    city: str
    country: str


@dataclass(frozen=True, slots=True)
class Shipment:
    """A delivery that a supplier brings to a store itself.

    :ivar milestones: (UTC time, what happened), in order.
    """

    id: str
    purchase_order: str
    carrier: str
    store: int
    status: str
    items: tuple[str, ...]
    milestones: tuple[tuple[str, str], ...]


def _item(row: str) -> Item:
    gtin, description, supplier, price, currency, pack = row.split("|")
    return Item(gtin, description, supplier, Decimal(price), currency, int(pack))


ITEMS: dict[str, Item] = {
    item.gtin: item
    for item in map(
        _item,
        (
            "00078742051451|Whole milk 3.78 L|410117|3.84|USD|4",
            "00078742370965|Large white eggs, 18 ct|410117|4.97|USD|15",
            "00012000161155|Cola 12 x 355 ml|520934|7.98|USD|2",
            "00028400090896|Potato chips, classic, 226 g|520934|4.48|USD|12",
            "00072250037129|White bread, sliced, 567 g|337205|1.97|USD|10",
            "00049000028911|Spring water 24 x 500 ml|520934|5.24|USD|1",
            "00055742359817|Lait écrémé 2 L|618840|4.29|CAD|6",
            "00068700011825|Beurre salé 454 g|618840|6.48|CAD|20",
            "00060383703929|Sirop d'érable, ambré, 540 ml|702116|9.97|CAD|12",
            "00059749894753|Poutine gravy mix 156 g|702116|1.77|CAD|24",
            "07501055310883|Refresco de toronja 3 L|845502|38.00|MXN|4",
            "07501000112784|Jalapeños en escabeche 380 g|845502|21.50|MXN|24",
            "07501020515343|Leche entera 1 L|871330|27.90|MXN|12",
            "07501030459941|Tortillas de maíz 1 kg|871330|24.00|MXN|15",
        ),
    )
}

STORES: dict[int, Store] = {
    store.number: store
    for store in (
        Store(100, "Bentonville", "US"),
        Store(1881, "Dallas", "US"),
        Store(2280, "Albuquerque", "US"),
        Store(5260, "Rogers", "US"),
        Store(1061, "Mississauga", "CA"),
        Store(3050, "Québec", "CA"),
        Store(3117, "Calgary", "CA"),
        Store(2344, "Ciudad de México", "MX"),
        Store(3868, "Monterrey", "MX"),
        Store(4105, "Mérida", "MX"),
    )
}

CARRIERS: dict[str, str] = {
    "SNLU": "Schneider National",
    "JBHT": "J.B. Hunt",
    "KNIG": "Knight Transportation",
    "BISO": "Bison Transport",
    "TFIN": "TransForce",
    "TCPM": "Transportes Castores",
}

_ITEMS = tuple(ITEMS)
_STORES = tuple(STORES)
_CARRIERS = tuple(CARRIERS)
_MILESTONES = ("tendered", "accepted", "loaded", "departed", "at_gate", "unloading", "received")


def _shipment(number: int) -> Shipment:
    reached = 2 + number % 6
    return Shipment(
        id=f"SHP{70230000 + number * 37}",
        purchase_order=f"{4501000000 + number * 7919:010d}",
        carrier=_CARRIERS[number % len(_CARRIERS)],
        store=_STORES[number * 3 % len(_STORES)],
        status=_MILESTONES[reached - 1],
        items=tuple(_ITEMS[(number + step) % len(_ITEMS)] for step in range(1 + number % 4)),
        milestones=tuple(
            (f"2025-03-{10 + number % 9:02d}T{6 + step:02d}:{number * 7 % 60:02d}:00Z", name)
            for step, name in enumerate(_MILESTONES[:reached])
        ),
    )


SHIPMENTS: dict[str, Shipment] = {
    shipment.id: shipment for shipment in (_shipment(number) for number in range(24))
}


def on_hand(item: str, store: int) -> int:
    """Return how many of `item` lie in `store`: made up, and always the same."""
    return (int(item[-5:]) * 31 + store * 17) % 480
