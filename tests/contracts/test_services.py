"""What we rely on from each real server, proven by a round trip; and how a missing one is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services import install
from tests.services.base import Service
from tests.services.errors import NotOurs, StartFailed, Unavailable
from tests.services.fixtures import give_up, serve
from tests.services.kafka import Kafka
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ
from tests.services.redis import Redis
from tests.services.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


# Kafka ------------------------------------------------------------------------------------


def produce(kafka: Kafka, topic: str, values: list[bytes]) -> int:
    """Produce with acks=all and say how many were acknowledged."""
    from confluent_kafka import Producer

    acknowledged = []
    producer = Producer(
        {"bootstrap.servers": kafka.address, "acks": "all", "message.max.bytes": 10_000_000}
    )
    for value in values:
        producer.produce(
            topic,
            value,
            key=b"key",
            headers=[("site", b"US"), ("empty", b"")],
            on_delivery=lambda error, message: error or acknowledged.append(message),
        )
    producer.flush(30)
    return len(acknowledged)


def consume(kafka: Kafka, topic: str, count: int) -> list:
    """The first messages of partition 0."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": kafka.address, "group.id": "none"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    messages: list = []
    deadline = time.monotonic() + 30
    while len(messages) < count and time.monotonic() < deadline:
        messages += [m for m in consumer.consume(count, 0.2) if m.error() is None]
    consumer.close()
    return messages


@pytest.mark.parametrize("region", ["kafka_primary", "kafka_secondary"])
@pytest.mark.services
def test_kafka_keeps_key_value_and_headers(region: str, request: pytest.FixtureRequest) -> None:
    kafka: Kafka = request.getfixturevalue(region)
    topic = unique("round-trip")
    kafka.create_topics({topic: 1})

    assert produce(kafka, topic, [b"one", b"two"]) == 2

    messages = consume(kafka, topic, 2)
    assert [message.value() for message in messages] == [b"one", b"two"]
    assert messages[0].key() == b"key"
    assert messages[0].headers() == [("site", b"US"), ("empty", b"")]


def test_kafka_takes_a_message_of_several_megabytes(kafka_primary: Kafka) -> None:
    topic = unique("large")
    kafka_primary.create_topics({topic: 1})
    value = os.urandom(6_000_000)

    assert produce(kafka_primary, topic, [value]) == 1
    assert consume(kafka_primary, topic, 1)[0].value() == value


def test_kafka_creates_topics_only_when_told(kafka_primary: Kafka) -> None:
    first, second = unique("topic"), unique("topic")

    kafka_primary.create_topics({first: 3, second: 1}, {"retention.ms": "60000"})
    assert len(topics_of(kafka_primary)[first].partitions) == 3

    kafka_primary.delete_topics([first, second])
    assert not {first, second} & topics_of(kafka_primary).keys()

    unknown = unique("unknown")
    kafka_primary.admin().list_topics(unknown, timeout=10)
    assert unknown not in topics_of(kafka_primary)


def topics_of(kafka: Kafka) -> dict:
    return kafka.admin().list_topics(timeout=10).topics


def test_two_regions_are_two_clusters(kafka_primary: Kafka, kafka_secondary: Kafka) -> None:
    topic = unique("only-primary")
    kafka_primary.create_topics({topic: 1})

    assert topic in topics_of(kafka_primary)
    assert topic not in topics_of(kafka_secondary)


@pytest.mark.services
def test_kafka_keeps_what_it_acknowledged_through_a_sigkill() -> None:
    with serve(Kafka("crash", own=True)) as kafka:
        address = kafka.address
        kafka.create_topics({"kept": 1})
        assert produce(kafka, "kept", [b"%d" % n for n in range(500)]) == 500

        kafka.kill()
        assert not kafka.running
        kafka.start()

        assert kafka.address == address
        values = [message.value() for message in consume(kafka, "kept", 500)]
        assert values == [b"%d" % n for n in range(500)]
        assert produce(kafka, "kept", [b"after"]) == 1


# Schema registry --------------------------------------------------------------------------


def record(*fields: str) -> dict[str, str]:
    return {"schema": '{"type":"record","name":"Event","fields":[' + ",".join(fields) + "]}"}


def test_registry_refuses_a_schema_that_breaks_readers(schema_registry: Registry) -> None:
    versions = f"/subjects/{unique('events')}-value/versions"
    first = '{"name":"id","type":"string"}'
    optional = '{"name":"note","type":["null","string"],"default":null}'
    required = '{"name":"must","type":"string"}'

    registered = schema_registry.request("POST", versions, record(first))
    schema_registry.request("POST", versions, record(first, optional))
    with pytest.raises(urllib.error.HTTPError) as refusal:
        schema_registry.request("POST", versions, record(first, required))

    assert refusal.value.code == 409
    assert schema_registry.request("GET", f"/schemas/ids/{registered['id']}")


# Redis ------------------------------------------------------------------------------------


def test_redis_sets_and_gets_in_separate_databases(redis_server: Redis) -> None:
    import redis

    key = unique("key")
    with (
        redis.Redis.from_url(redis_server.url_for(0)) as zero,
        redis.Redis.from_url(redis_server.url_for(1)) as one,
    ):
        zero.set(key, b"value")
        assert zero.get(key) == b"value"
        assert one.get(key) is None


@pytest.mark.services
def test_redis_keeps_its_data_through_restart_and_sigkill() -> None:
    import redis

    with serve(Redis(own=True)) as server, redis.Redis.from_url(server.url) as client:
        client.set("key", b"value")
        server.restart()
        assert client.get("key") == b"value"
        client.set("key", b"newer")
        server.kill()
        server.start()
        assert client.get("key") == b"newer"


@pytest.mark.services
def test_a_paused_server_keeps_connections_and_answers_nothing() -> None:
    import redis

    with (
        serve(Redis(own=True)) as server,
        redis.Redis.from_url(server.url, socket_timeout=0.2, retry=None) as client,
    ):
        client.set("key", b"value")
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("key")
        server.resume()
        server.pause()
        server.stop()  # also when paused
        assert not server.running


# RabbitMQ ---------------------------------------------------------------------------------


def test_rabbitmq_delivers_what_was_published(rabbitmq_server: RabbitMQ) -> None:
    from kombu import Connection

    with Connection(rabbitmq_server.url, connect_timeout=10) as connection:
        queue = connection.SimpleQueue(unique("queue"), queue_opts={"auto_delete": True})
        queue.put({"id": 1}, headers={"site": "US"})
        message = queue.get(timeout=10)
        assert message.payload == {"id": 1}
        assert message.headers["site"] == "US"
        message.ack()
        queue.close()


# PostgreSQL -------------------------------------------------------------------------------


def test_postgres_gives_an_empty_database_each_time(postgres_server: Postgres) -> None:
    import psycopg

    name = unique("test").replace("-", "_")
    for _ in range(2):
        with psycopg.connect(postgres_server.create_database(name)) as connection:
            connection.execute("CREATE TABLE kept (id int PRIMARY KEY)")
            connection.execute("INSERT INTO kept VALUES (1)")
            assert connection.execute("SELECT current_database()").fetchone() == (name,)
    postgres_server.drop_database(name)


@pytest.mark.services
def test_postgres_keeps_what_it_committed_through_a_sigkill() -> None:
    import psycopg

    with serve(Postgres(own=True)) as server:
        url = server.create_database("crash")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
        server.kill()
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)


# Google Cloud Storage ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000, 9_000_000], ids=["small", "resumable"])
def test_gcs_creates_an_object_once(gcs_server: Service, size: int) -> None:
    from google.api_core.exceptions import PreconditionFailed

    bucket = gcs_server.create_bucket(unique("bucket"))
    content = os.urandom(size)

    bucket.blob("events/one.parquet").upload_from_string(content, if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("events/one.parquet").upload_from_string(b"x" * size, if_generation_match=0)

    blob = gcs_server.client().bucket(bucket.name).get_blob("events/one.parquet")
    assert blob.size == size
    assert blob.crc32c
    assert blob.download_as_bytes() == content


def test_gcs_refuses_the_second_create_of_a_chunked_upload(gcs_server: Service) -> None:
    from google.api_core.exceptions import PreconditionFailed

    bucket = gcs_server.create_bucket(unique("bucket"))
    content = os.urandom(9_000_000)
    chunk = 1 << 20

    bucket.blob("one", chunk_size=chunk).upload_from_string(content, if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        bucket.blob("one", chunk_size=chunk).upload_from_string(
            b"x" * 9_000_000, if_generation_match=0
        )

    assert bucket.blob("one").download_as_bytes() == content
    assert bucket.blob("one").download_as_bytes(start=5, end=9) == content[5:10]


# What every service does ------------------------------------------------------------------


class Missing(Service):
    """A part that no machine has."""

    name = "missing"
    env_name = "AUDIT_TEST_MISSING_URL"

    class _Impossible:
        cure = "get-it"

        def blocker(self) -> str:
            return "it does not exist"

        def install(self, title: str) -> None:
            raise AssertionError("never tried")

    programs = (install.Program("The Missing Part", lambda: None, _Impossible()),)


class Ended(Service):
    """A server that ends at once, having said why."""

    name = "ended"
    env_name = "AUDIT_TEST_ENDED_URL"

    def launch(self) -> None:
        self.spawn([sys.executable, "-c", "import sys; print('no such disk'); sys.exit(3)"])

    def ask(self) -> None:
        raise ConnectionError


class Mute(Service):
    """A server that runs and never answers, with a child in a session of its own."""

    name = "mute"
    env_name = "AUDIT_TEST_MUTE_URL"
    ready_within = 0.3

    def launch(self) -> None:
        self.spawn(["sh", "-c", "echo up; setsid sleep 600 & echo child $!; wait"])

    def ask(self) -> None:
        if "child" not in self.tail_log() or self.port:
            raise ConnectionError("mute")


class Quiet(Mute):
    """The same, but content with having printed its child's number."""

    ready_within = 10.0

    def ask(self) -> None:
        if "child" not in self.tail_log():
            raise ConnectionError("not yet")

    @property
    def child(self) -> int:
        return int(self.tail_log().split()[-1])


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def wait_until_dead(*pids: int) -> None:
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_missing_part_names_itself_and_its_cure() -> None:
    with pytest.raises(Unavailable, match=r"The Missing Part .* does not exist.* get-it"):
        Missing().start()


def test_a_missing_part_is_a_skip_for_a_person_and_a_failure_in_ci() -> None:
    error = Unavailable("Redis", "it is not installed", "apt-get install redis-server")
    with pytest.raises(pytest.skip.Exception, match="Redis is not available"):
        give_up(error, environ={})
    with pytest.raises(pytest.fail.Exception, match="apt-get install redis-server"):
        give_up(error, environ={"CI": "true"})


def test_an_address_in_the_environment_is_used_as_it_is() -> None:
    given = Redis(environ={"AUDIT_TEST_REDIS_URL": "redis://elsewhere:1/0"})
    assert given.url_for(3) == "redis://elsewhere:1/3"
    assert given.address == "elsewhere:1"
    with pytest.raises(NotOurs, match="AUDIT_TEST_REDIS_URL"):
        given.kill()
    given.stop()  # leaves it alone

    own = Redis(own=True, environ={"AUDIT_TEST_REDIS_URL": "redis://elsewhere:1/0"})
    assert own.given is None


def test_a_server_that_ends_at_start_shows_its_log() -> None:
    service = Ended()
    with pytest.raises(StartFailed, match=r"(?s)ended with 3.*no such disk"):
        service.start()
    assert service.root is None


def test_a_server_that_never_answers_is_ended_with_its_children() -> None:
    service = Mute()
    with pytest.raises(StartFailed, match=r"(?s)did not answer.*mute.*up") as failure:
        service.start()
    assert not service.running
    wait_until_dead(int(failure.value.log.split()[-1]))


def test_stop_ends_children_in_sessions_of_their_own_and_removes_the_data() -> None:
    with Quiet() as service:
        root, child = service.root, service.child
        assert alive(child)
    wait_until_dead(child)
    assert root is not None
    assert not root.exists()


def test_a_forked_child_that_leaves_does_not_end_its_parents_server() -> None:
    with Quiet() as service:
        child = os.fork()
        if child == 0:
            service.stop()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert service.running
        assert alive(service.child)


def test_servers_do_not_outlive_a_killed_test_run() -> None:
    script = (
        "import os, signal, threading, time\n"
        "from tests.contracts.test_services import Quiet\n"
        "service = Quiet()\n"
        "thread = threading.Thread(target=service.start); thread.start(); thread.join()\n"
        "worker = os.fork()\n"  # it lives on, and must not keep the servers alive
        "if worker == 0: signal.pause()\n"
        "print(worker, service.pid, service.child, service.root, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        worker, server, child, root = run.stdout.readline().split()
        assert alive(int(server))
        run.kill()
    try:
        wait_until_dead(int(server), int(child))
        wait_until(lambda: not Path(root).exists())
    finally:
        os.kill(int(worker), signal.SIGKILL)


def test_an_install_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "part-1"
    with pytest.raises(FileNotFoundError), install.into(target) as folder:
        (folder / "absent" / "half").touch()
    assert list(tmp_path.iterdir()) == []

    (tmp_path / ".part-1.killed.part").mkdir()  # what a killed process leaves
    with install.into(target) as folder:
        (folder / "whole").touch()
    assert list(tmp_path.iterdir()) == [target]

    with install.into(target) as folder:
        assert folder is None  # nothing to do


@pytest.mark.parametrize("before", [None, "#!/bin/sh\nexit 0\n"], ids=["absent", "permissive"])
def test_the_policy_on_daemons_is_put_back(tmp_path: Path, before: str | None) -> None:
    policy = tmp_path / "policy-rc.d"
    if before:
        policy.write_text(before)
        policy.chmod(0o755)

    with install.no_daemons_started(policy):
        assert subprocess.run([policy, "redis", "start"], check=False).returncode == 101
        killed = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ([policy.name] if before else [])

    for name, text in killed.items():  # as if we had been killed inside
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with install.no_daemons_started(policy):
        pass
    assert policy.exists() == bool(before)
    assert not before or policy.read_text() == before


def test_the_cache_lies_where_the_environment_says() -> None:
    assert install.cache_dir({"AUDIT_TEST_CACHE": "/a"}) == Path("/a")
    assert install.cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/django-api-audit")
    assert install.cache_dir({}) == Path.home() / ".cache" / "django-api-audit"
