"""What tests of buckets take for granted of the emulator: asked over HTTP, without our client."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
import uuid
from typing import Any

import google_crc32c
import pytest

pytestmark = pytest.mark.services

DATA = bytes(range(256)) * 4
OTHER = DATA[::-1]


class Raw:
    """Requests to one bucket, as the service's documentation has them."""

    def __init__(self, server: Any) -> None:
        self.bucket = server.create_bucket(f"emulator-{uuid.uuid4().hex}")
        self.uploads = f"{server.url}/upload/storage/v1/b/{self.bucket.name}/o"

    def send(
        self, method: str, url: str, body: bytes, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(url, body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def multipart(self, name: str, data: bytes, checksum: bytes) -> int:
        about = {"name": name, "crc32c": crc32c(checksum)}
        head = b"--x\r\ncontent-type: application/json\r\n\r\n" + json.dumps(about).encode()
        body = head + b"\r\n--x\r\ncontent-type: a/b\r\n\r\n" + data + b"\r\n--x--"
        url = f"{self.uploads}?uploadType=multipart&ifGenerationMatch=0"
        return self.send("POST", url, body, content_type="multipart/related; boundary=x")[0]

    def start(self, name: str, checksum: bytes) -> str:
        about = json.dumps({"name": name, "crc32c": crc32c(checksum)}).encode()
        url = f"{self.uploads}?uploadType=resumable&ifGenerationMatch=0"
        status, headers, _ = self.send("POST", url, about, content_type="application/json")
        assert status == 200
        return headers["Location"]

    def put(self, session: str, data: bytes, start: int, total: int) -> int:
        span = f"bytes {start}-{start + len(data) - 1}/{total}"
        return self.send("PUT", session, data, content_range=span)[0]

    def read(self, name: str) -> bytes | None:
        blob = self.bucket.get_blob(name)
        return blob and blob.download_as_bytes()


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@pytest.fixture
def raw(gcs_server: Any) -> Raw:
    return Raw(gcs_server)


def test_one_request_creates_once(raw: Raw) -> None:
    assert raw.multipart("one", DATA, DATA) == 200
    assert raw.multipart("one", OTHER, OTHER) == 412
    assert raw.multipart("one", DATA, DATA) == 412
    assert raw.read("one") == DATA


def test_an_upload_in_parts_creates_once(raw: Raw) -> None:
    session = raw.start("one", DATA)
    assert raw.put(session, DATA[:512], 0, 1024) == 308
    assert raw.read("one") is None
    assert raw.put(session, DATA[512:], 512, 1024) == 200
    assert raw.read("one") == DATA
    assert raw.put(raw.start("one", OTHER), OTHER, 0, 1024) == 412
    assert raw.read("one") == DATA


def test_the_precondition_counts_when_the_last_part_comes(raw: Raw) -> None:
    session = raw.start("one", OTHER)
    assert raw.put(session, OTHER[:512], 0, 1024) == 308
    assert raw.multipart("one", DATA, DATA) == 200
    assert raw.put(session, OTHER[512:], 512, 1024) == 412
    assert raw.read("one") == DATA


def test_of_two_uploads_in_parts_the_first_to_end_wins(raw: Raw) -> None:
    one, other = raw.start("one", DATA), raw.start("one", OTHER)
    assert raw.put(other, OTHER, 0, 1024) == 200
    assert raw.put(one, DATA, 0, 1024) == 412
    assert raw.read("one") == OTHER


def test_bytes_that_are_not_those_of_the_checksum_are_refused(raw: Raw) -> None:
    assert raw.multipart("one", DATA, OTHER) == 400
    assert raw.put(raw.start("two", OTHER), DATA, 0, 1024) == 400
    assert raw.read("one") is raw.read("two") is None


def test_it_tells_the_checksum_of_what_it_holds(raw: Raw) -> None:
    assert raw.multipart("one", DATA, DATA) == 200
    assert raw.bucket.get_blob("one").crc32c == crc32c(DATA)
