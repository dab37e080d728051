"""What partners may send, and the reason each refused field is given."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

from . import catalog

#: Bytes of a body after decompression.
MAX_BODY = 1 << 20


class StockSerializer(serializers.Serializer):
    """A count of one item in one store."""

    store = serializers.IntegerField()
    item = serializers.RegexField(
        r"^\d{14}$", error_messages={"invalid": "A GTIN has 14 digits, with leading zeros."}
    )
    quantity = serializers.IntegerField(min_value=0, max_value=99_999)
    unit_price = serializers.DecimalField(max_digits=8, decimal_places=2, required=False)
    currency = serializers.ChoiceField(("USD", "CAD", "MXN"), required=False)
    note = serializers.CharField(max_length=2_000, required=False, allow_blank=True)

    def validate_store(self, number: int) -> int:
        if number not in catalog.STORES:
            raise serializers.ValidationError(f"There is no store {number}.")
        return number

    def validate_item(self, gtin: str) -> str:
        if gtin not in catalog.ITEMS:
            raise serializers.ValidationError(f"Item {gtin} is not set up for this supplier.")
        return gtin


class BulkSerializer(serializers.Serializer):
    """Many counts at once."""

    batch = serializers.CharField(max_length=60)
    lines = StockSerializer(many=True, allow_empty=False)


class PaymentSerializer(serializers.Serializer):
    """A freight charge paid by card."""

    purchase_order = serializers.RegexField(r"^\d{10}$")
    amount = serializers.DecimalField(max_digits=10, decimal_places=2, min_value=0)
    currency = serializers.ChoiceField(("USD", "CAD", "MXN"))
    card = serializers.DictField(child=serializers.CharField(max_length=40))


class GzipJSONParser(JSONParser):
    """JSON that may have come with ``Content-Encoding: gzip``; bounded when unpacked."""

    def parse(
        self,
        stream: BinaryIO,
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the parsed body.

        :raises ParseError: it is not gzip, too large when unpacked, or not JSON.
        """
        request = (parser_context or {})["request"]
        if request.headers.get("Content-Encoding", "").lower() == "gzip":
            try:
                with gzip.GzipFile(fileobj=io.BytesIO(stream.read())) as packed:
                    plain = packed.read(MAX_BODY + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise ParseError("The body is not valid gzip.") from error
            if len(plain) > MAX_BODY:
                raise ParseError(f"The body unpacks to more than {MAX_BODY} bytes.")
            stream = io.BytesIO(plain)
        return super().parse(stream, media_type, parser_context)
