"""What every schema registry backend must do. Inherit `RegistryContract`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest

from audit_publisher.avro.registry import Registry
from audit_publisher.codec import SCHEMA_PATH, schema_text
from audit_publisher.exceptions import RegistryUnavailable, SchemaIncompatible, UnknownSchema

VERSIONS = sorted((SCHEMA_PATH.parent / "versions").glob("*.avsc"), key=lambda path: int(path.stem))

OpenRegistry = Callable[[], Registry]


def changed(**field: object) -> str:
    """Our schema with one more field."""
    schema = json.loads(schema_text())
    schema["fields"].append(field)
    return json.dumps(schema)


class RegistryContract:
    """The suite. Each test has a subject of its own."""

    @pytest.fixture
    def open_registry(self) -> OpenRegistry:
        """A function that opens the same registry anew; override it."""
        raise NotImplementedError

    @pytest.fixture
    def registry(self, open_registry: OpenRegistry) -> Registry:
        return open_registry()

    @pytest.fixture
    def down(self) -> OpenRegistry:
        """A function that opens the registry as it is while it cannot be reached, with what it
        kept on disk; override it."""
        raise NotImplementedError

    @pytest.fixture
    def subject(self) -> str:
        return f"contract-{uuid.uuid4().hex[:12]}-value"

    def test_registering_twice_gives_the_same_id(
        self, open_registry: OpenRegistry, subject: str
    ) -> None:
        first = open_registry().register(subject, schema_text())
        assert first > 0
        assert open_registry().register(subject, schema_text()) == first
        spaced = json.dumps(json.loads(schema_text()), indent=3)
        assert open_registry().register(subject, spaced) == first

    def test_an_id_gives_its_schema_back(self, open_registry: OpenRegistry, subject: str) -> None:
        schema_id = open_registry().register(subject, schema_text())
        assert json.loads(open_registry().schema(schema_id)) == json.loads(schema_text())

    def test_a_new_field_with_a_default_is_taken(self, registry: Registry, subject: str) -> None:
        first = registry.register(subject, schema_text())
        second = registry.register(
            subject, changed(name="added", type=["null", "string"], default=None)
        )
        assert second != first
        assert registry.register(subject, schema_text()) == first

    def test_a_new_field_without_a_default_is_refused(
        self, registry: Registry, subject: str
    ) -> None:
        registry.register(subject, schema_text())
        with pytest.raises(SchemaIncompatible, match="must_have"):
            registry.register(subject, changed(name="must_have", type="string"))

    def test_a_changed_type_is_refused(self, registry: Registry, subject: str) -> None:
        registry.register(subject, schema_text())
        text = schema_text().replace(
            '"name":"response_code","type":"int"', '"name":"response_code","type":"string"'
        )
        assert text != schema_text()
        with pytest.raises(SchemaIncompatible, match="response_code: int cannot be read as string"):
            registry.register(subject, text)

    def test_every_committed_version_is_taken_in_its_order(
        self, registry: Registry, subject: str
    ) -> None:
        ids = [registry.register(subject, path.read_text()) for path in VERSIONS]
        assert len(set(ids)) == len(ids)
        assert registry.register(subject, schema_text()) == ids[-1]

    def test_an_unknown_id(self, registry: Registry) -> None:
        with pytest.raises(UnknownSchema):
            registry.schema(1_999_999_999)

    def test_what_is_known_stays_known_while_it_is_down(
        self, open_registry: OpenRegistry, down: OpenRegistry, subject: str
    ) -> None:
        schema_id = open_registry().register(subject, schema_text())
        dead = down()
        assert dead.register(subject, schema_text()) == schema_id
        assert json.loads(dead.schema(schema_id)) == json.loads(schema_text())

    def test_what_is_not_known_waits_for_it(
        self, open_registry: OpenRegistry, down: OpenRegistry, subject: str
    ) -> None:
        open_registry().register(subject, schema_text())
        dead = down()
        with pytest.raises(RegistryUnavailable):
            dead.register(f"new-{subject}", schema_text())
