"""The broker contract, kept by each broker that deliveries may go through."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.broker import BrokerContract, NetworkBrokerContract
from tests.services.rabbitmq import RabbitMQ
from tests.services.redis import Redis

pytestmark = pytest.mark.slow


class TestDurable(BrokerContract):
    """The embedded one."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"durable://{tmp_path}/broker.sqlite3"

    @pytest.fixture
    def dead_url(self, tmp_path: Path) -> str:
        (tmp_path / "file").write_text("in the way")
        return f"durable://{tmp_path}/file/broker.sqlite3"


class TestRedis(NetworkBrokerContract):
    scheme = "redis"

    @pytest.fixture
    def url(self, redis_server: Redis) -> str:
        return redis_server.url_for(9)


class TestRabbitMQ(NetworkBrokerContract):
    scheme = "amqp"
    visibility = None

    @pytest.fixture
    def url(self, rabbitmq_server: RabbitMQ) -> str:
        return rabbitmq_server.url
