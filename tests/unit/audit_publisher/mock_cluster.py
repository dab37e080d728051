"""librdkafka's own mock of a cluster, in this process: a real wire protocol, errors on demand.

A rig for single errors, never a store: it forgets, and it does not know duplicates.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22
_PRODUCER = 0
_BROKER = 1


@cache
def _library() -> Any:
    import confluent_kafka

    folder = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
    library = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
    for name, result, arguments in (
        ("rd_kafka_conf_new", ctypes.c_void_p, []),
        (
            "rd_kafka_new",
            ctypes.c_void_p,
            [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
        ),
        ("rd_kafka_destroy", None, [ctypes.c_void_p]),
        ("rd_kafka_mock_cluster_new", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
        ("rd_kafka_mock_cluster_destroy", None, [ctypes.c_void_p]),
        ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, [ctypes.c_void_p]),
        (
            "rd_kafka_mock_topic_create",
            ctypes.c_int,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
        ),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
        ),
        ("rd_kafka_mock_clear_request_errors", None, [ctypes.c_void_p, ctypes.c_int16]),
        (
            "rd_kafka_mock_broker_set_rtt",
            ctypes.c_int,
            [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int],
        ),
        ("rd_kafka_mock_broker_set_down", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class MockCluster:
    """One broker, and one topic of one partition."""

    def __init__(self, topic: str) -> None:
        self._lib = _library()
        said = ctypes.create_string_buffer(512)
        self._owner = self._lib.rd_kafka_new(
            _PRODUCER, self._lib.rd_kafka_conf_new(), said, len(said)
        )
        assert self._owner, said.value
        self._cluster = self._lib.rd_kafka_mock_cluster_new(self._owner, 1)
        assert self._cluster
        assert not self._lib.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1)

    @property
    def address(self) -> str:
        """Bootstrap servers."""
        return str(self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def answer(self, request: int, code: int, times: int = 1000) -> None:
        """Answer the next requests of a kind with an error."""
        errors = (ctypes.c_int * times)(*[code] * times)
        self._lib.rd_kafka_mock_push_request_errors_array(self._cluster, request, times, errors)

    def slow(self, milliseconds: int) -> None:
        """Answer everything later by so much."""
        self._lib.rd_kafka_mock_broker_set_rtt(self._cluster, _BROKER, milliseconds)

    def down(self) -> None:
        """Close every connection, and take none."""
        self._lib.rd_kafka_mock_broker_set_down(self._cluster, _BROKER)

    def heal(self) -> None:
        """The end of every error."""
        for request in (PRODUCE, METADATA, INIT_PRODUCER_ID):
            self._lib.rd_kafka_mock_clear_request_errors(self._cluster, request)
        self.slow(0)
        self._lib.rd_kafka_mock_broker_set_up(self._cluster, _BROKER)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._owner)
