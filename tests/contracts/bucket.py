"""What every bucket must do; a backend's test class inherits this and gives a `bucket`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from audit_sink.exceptions import BucketMissing, ConflictError
from audit_sink.lake.storage import Bucket

NAME = "events/service=a/date=2026-01-02/endpoint=b/t-primary-0-0-10.parquet"
LARGE = bytes(range(256)) * 40_000  # 10 MB: another upload path in some clients


class BucketContract:
    """Subclasses give the fixtures `bucket` (empty) and `missing` (does not exist)."""

    @pytest.fixture
    def bucket(self) -> Bucket:
        raise NotImplementedError

    @pytest.fixture
    def missing(self) -> Bucket:
        raise NotImplementedError

    def test_what_is_created_can_be_read(self, bucket: Bucket) -> None:
        assert bucket.create(NAME, b"data") is True
        assert bucket.read(NAME) == b"data"
        assert bucket.size(NAME) == 4
        assert bucket.exists(NAME)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, pa.py_buffer])
    @pytest.mark.parametrize("data", [b"", bytes(range(256))], ids=["empty", "all"])
    def test_bytes_of_any_kind_are_taken_and_compared(
        self, bucket: Bucket, data: bytes, kind: Callable[[bytes], Any]
    ) -> None:
        assert bucket.create(NAME, kind(data)) is True
        assert bucket.create(NAME, kind(data)) is False
        with pytest.raises(ConflictError):
            bucket.create(NAME, kind(data + b"!"))
        assert bucket.read(NAME) == data

    def test_an_empty_object_is_an_object(self, bucket: Bucket) -> None:
        assert bucket.create(NAME, b"") is True
        assert bucket.read(NAME) == b""
        assert bucket.size(NAME) == 0

    @pytest.mark.parametrize("data", [b"data", LARGE], ids=["small", "large"])
    def test_creating_again_with_equal_bytes_is_success(self, bucket: Bucket, data: bytes) -> None:
        assert bucket.create(NAME, data) is True
        assert bucket.create(NAME, data) is False
        assert bucket.read(NAME) == data

    @pytest.mark.parametrize("data", [b"data", LARGE], ids=["small", "large"])
    def test_creating_again_with_other_bytes_is_a_conflict(
        self, bucket: Bucket, data: bytes
    ) -> None:
        bucket.create(NAME, data)
        with pytest.raises(ConflictError, match="holds other bytes"):
            bucket.create(NAME, data[:-1] + b"!")
        with pytest.raises(ConflictError):
            bucket.create(NAME, data + b"!")
        assert bucket.read(NAME) == data

    def test_of_racing_creators_one_wins(self, bucket: Bucket) -> None:
        outcomes: list[object] = []

        def create(data: bytes) -> None:
            try:
                outcomes.append(bucket.create(NAME, data))
            except ConflictError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=create, args=(b"%d" % n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count(True) == 1
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 7

    def test_an_object_is_opened_in_parts(self, bucket: Bucket) -> None:
        bucket.create(NAME, LARGE)
        with bucket.open(NAME) as file:
            file.seek(-3, 2)
            assert file.read() == LARGE[-3:]
            file.seek(256)
            assert file.read(4) == LARGE[256:260]

    def test_what_is_not_there_says_so(self, bucket: Bucket) -> None:
        assert bucket.size(NAME) is None
        assert not bucket.exists(NAME)
        with pytest.raises(FileNotFoundError):
            bucket.read(NAME)
        with pytest.raises(FileNotFoundError):
            bucket.open(NAME)
        bucket.delete(NAME)

    def test_names_are_listed_in_order_below_a_prefix(self, bucket: Bucket) -> None:
        for name in ("events/b/2", "events/b/1", "events/a/1", "manifest/x"):
            bucket.create(name, b"")
        assert list(bucket.list("events/")) == ["events/a/1", "events/b/1", "events/b/2"]
        assert list(bucket.list("events/b")) == ["events/b/1", "events/b/2"]
        assert list(bucket.list("nothing/")) == []
        assert list(bucket.list()) == ["events/a/1", "events/b/1", "events/b/2", "manifest/x"]

    def test_what_is_deleted_is_gone(self, bucket: Bucket) -> None:
        bucket.create(NAME, b"data")
        bucket.delete(NAME)
        assert not bucket.exists(NAME)
        assert bucket.create(NAME, b"other") is True

    def test_probing_leaves_nothing(self, bucket: Bucket) -> None:
        bucket.probe()
        assert list(bucket.list()) == []

    def test_pyarrow_reads_what_was_created(self, bucket: Bucket) -> None:
        bucket.create(NAME, b"data")
        filesystem, prefix = bucket.arrow()
        with filesystem.open_input_file(prefix + NAME) as file:
            assert file.read() == b"data"

    def test_a_missing_bucket_is_named_and_its_cure(self, missing: Bucket) -> None:
        for call in (lambda: missing.create(NAME, b"data"), missing.probe):
            with pytest.raises(BucketMissing, match="correct the site's bucket URL"):
                call()
