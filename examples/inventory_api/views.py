"""The endpoints: one of each kind that real services have, so that each is seen audited."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from . import catalog
from .serializers import (
    MAX_BODY,
    BulkSerializer,
    GzipJSONParser,
    PaymentSerializer,
    StockSerializer,
)


class Partner:
    """Who a bearer token belongs to."""

    is_authenticated = True
    is_active = True

    def __init__(self, username: str) -> None:
        self.username = username

    def __str__(self) -> str:
        return self.username


class BearerToken(BaseAuthentication):
    """``Authorization: Bearer <token>`` against the tokens in settings."""

    def authenticate(self, request: Request) -> tuple[Partner, None] | None:
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        username = settings.PARTNER_TOKENS.get(token)
        if username is None:
            raise AuthenticationFailed("The token is unknown or has expired.")
        return Partner(username), None

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="inventory-api"'


class IsPartner(BasePermission):
    """Only with a token."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.user, Partner)


def _item(gtin: str) -> catalog.Item:
    try:
        return catalog.ITEMS[gtin]
    except KeyError:
        raise Http404(f"There is no item {gtin}.") from None


def _shipment(number: str) -> catalog.Shipment:
    try:
        return catalog.SHIPMENTS[number]
    except KeyError:
        raise Http404(f"There is no shipment {number}.") from None


@require_GET
def health(request: HttpRequest) -> HttpResponse:
    """The load balancer's question; not audited by default."""
    return JsonResponse({"status": "ok"})


class InventoryView(APIView):
    """``POST /iac/v1/inventory``: a supplier reports a count."""

    def post(self, request: Request) -> Response:
        stock = StockSerializer(data=request.data)
        stock.is_valid(raise_exception=True)
        line = stock.validated_data
        before = catalog.on_hand(line["item"], line["store"])
        answer: dict[str, Any] = {
            "status": "accepted",
            "store": line["store"],
            "city": catalog.STORES[line["store"]].city,
            "item": line["item"],
            "description": catalog.ITEMS[line["item"]].description,
            "on_hand": {"before": before, "after": line["quantity"]},
        }
        if "note" in line:
            answer["note"] = line["note"]
        return Response(answer, status=201)


class InventoryItemView(APIView):
    """``GET /iac/v1/inventory/<item>``: what lies where. ``DELETE`` releases a reservation."""

    def get(self, request: Request, item: str) -> Response:
        found = _item(item)
        return Response(
            {
                "item": found.gtin,
                "description": found.description,
                "supplier": found.supplier,
                "price": str(found.price),
                "currency": found.currency,
                "stores": [
                    {"store": number, "on_hand": catalog.on_hand(found.gtin, number)}
                    for number in catalog.STORES
                ],
            }
        )

    def delete(self, request: Request, item: str) -> Response:
        _item(item)
        return Response(status=204)


class BulkView(APIView):
    """``POST /iac/v1/inventory/bulk``: up to 1 MB of counts, answered with a summary."""

    def post(self, request: Request) -> Response:
        if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BODY:
            return Response({"detail": f"The body is over {MAX_BODY} bytes."}, status=413)
        bulk = BulkSerializer(data=request.data)
        bulk.is_valid(raise_exception=True)
        return Response(_summary(bulk.validated_data))


class SnapshotView(APIView):
    """``POST /iac/v1/inventory/snapshot``: a night's counts, which may come gzipped."""

    parser_classes = [GzipJSONParser]

    def post(self, request: Request) -> Response:
        bulk = BulkSerializer(data=request.data)
        bulk.is_valid(raise_exception=True)
        return Response(_summary(bulk.validated_data))


def _summary(bulk: dict[str, Any]) -> dict[str, Any]:
    lines = bulk["lines"]
    value = sum(line.get("unit_price", Decimal(0)) * line["quantity"] for line in lines)
    return {
        "batch": bulk["batch"],
        "lines": len(lines),
        "items": len({line["item"] for line in lines}),
        "stores": sorted({line["store"] for line in lines}),
        "units": sum(line["quantity"] for line in lines),
        "value": f"{value:.2f}",
    }


class ForecastView(APIView):
    """``GET /iac/v1/forecast/<item>?days=7``; has a bug: ``days=0`` divides by zero."""

    def get(self, request: Request, item: str) -> Response:
        found = _item(item)
        days = int(request.query_params.get("days", "7"))
        sold = catalog.on_hand(found.gtin, 100)
        return Response({"item": found.gtin, "days": days, "daily": sold // days})


async def availability(request: HttpRequest, item: str) -> HttpResponse:
    """``GET /iac/v1/availability/<item>``: asks all stores at the same time."""
    found = _item(item)

    async def ask(store: int) -> dict[str, int]:
        await asyncio.sleep(0)
        return {"store": store, "on_hand": catalog.on_hand(found.gtin, store)}

    answers = await asyncio.gather(*(ask(number) for number in catalog.STORES))
    return JsonResponse(
        {"item": found.gtin, "stores": [answer for answer in answers if answer["on_hand"] > 0]}
    )


class ShipmentView(APIView):
    """``GET /dsd/v1/shipments/<id>``: where a delivery is."""

    def get(self, request: Request, id: str) -> Response:
        shipment = _shipment(id)
        return Response(
            {
                "shipment": shipment.id,
                "purchase_order": shipment.purchase_order,
                "carrier": {"scac": shipment.carrier, "name": catalog.CARRIERS[shipment.carrier]},
                "store": shipment.store,
                "status": shipment.status,
                "items": [
                    {"item": gtin, "description": catalog.ITEMS[gtin].description}
                    for gtin in shipment.items
                ],
            }
        )


@require_GET
def shipment_events(request: HttpRequest, id: str) -> StreamingHttpResponse:
    """``GET /dsd/v1/shipments/<id>/events``: one JSON object a line, as they are read."""
    shipment = _shipment(id)

    def lines() -> Iterator[bytes]:
        for time, name in shipment.milestones:
            event = {"shipment": shipment.id, "event": name, "time": time}
            yield json.dumps(event).encode() + b"\n"

    return StreamingHttpResponse(lines(), content_type="application/x-ndjson")


@csrf_exempt
@require_POST
def appointment(request: HttpRequest, id: str) -> HttpResponse:
    """``POST /dsd/v1/shipments/<id>/appointment``: a driver's form, posted from a dock tablet."""
    shipment = _shipment(id)
    missing = [name for name in ("dock", "slot", "driver") if not request.POST.get(name)]
    if missing:
        errors = {name: ["This field is required."] for name in missing}
        return JsonResponse(errors, status=400)
    return JsonResponse(
        {
            "shipment": shipment.id,
            "dock": request.POST["dock"],
            "slot": request.POST["slot"],
            "driver": request.POST["driver"],
            "status": "booked",
        },
        json_dumps_params={"ensure_ascii": False},
    )


class PaymentView(APIView):
    """``POST /dsd/v1/payments``: pays a freight charge; needs a bearer token."""

    authentication_classes = [BearerToken]
    permission_classes = [IsPartner]

    def post(self, request: Request) -> Response:
        payment = PaymentSerializer(data=request.data)
        payment.is_valid(raise_exception=True)
        paid = payment.validated_data
        return Response(
            {
                "purchase_order": paid["purchase_order"],
                "amount": str(paid["amount"]),
                "currency": paid["currency"],
                "paid_by": str(request.user),
                "status": "captured",
            },
            status=201,
        )
