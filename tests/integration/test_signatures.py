"""Signatures of others: openssl as the documentation has it, a JDK, and another implementation.

Each signs requests to the publisher behind its real server, with keys that it made itself; and
each verifies what we sign.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audit_logging import message_signatures, signing
from audit_logging.signing import Scheme, Signer
from audit_publisher.testing import make_event
from tests.services.errors import Unavailable
from tests.services.fixtures import give_up
from tests.services.install import JDK, OPENSSL, Program
from tests.unit.audit_publisher.served import ROOT, Server, serve

pytestmark = pytest.mark.slow

SCHEMES: tuple[Scheme, ...] = ("legacy", "rsa-v1_5-sha256", "rsa-pss-sha512")
URL = "/v1/logs/api-requests"
JSON = {"Content-Type": "application/json"}
#: Seconds in which each worker knows a new key.
KNOWN_WITHIN = 30.0


def program(wanted: Program) -> Path:
    try:
        return wanted.ensure()
    except Unavailable as error:
        missing = error
    give_up(missing)


def examples() -> dict[str, str]:
    """The commands of the documentation, by name."""
    text = (ROOT / "docs" / "signatures.md").read_text()
    return dict(re.findall(r"<!-- example: (\w+) -->\n```sh\n(.+?)```", text, re.DOTALL))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with serve(tmp_path_factory.mktemp("served"), pem.decode()) as made:
        yield made


@dataclass
class Shell:
    """The documentation's commands, in a folder, against the server."""

    folder: Path
    server: Server
    consumer: str

    def run(self, name: str) -> str:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("AUDIT_")
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", examples()[name]],
            cwd=self.folder,
            env=environ
            | {
                "CONSUMER": self.consumer,
                "PUBLISHER": f"http://127.0.0.1:{self.server.port}",
                "DJANGO_SETTINGS_MODULE": "config.settings",
                "AUDIT_DATA_DIR": str(self.server.data),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_known(self) -> None:
        """Until every worker knows the key: none says any more that it does not."""
        signer = Signer(self.consumer, "1", self.folder / "private.pem")
        deadline = time.monotonic() + KNOWN_WITHIN
        good = 0
        while good < 12:
            assert time.monotonic() < deadline
            status, _ = post(self.server, signer.headers(int(time.time() * 1000)), event())
            good = good + 1 if status == 200 else 0


@pytest.fixture(scope="module")
def shell(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """With a key pair made by openssl, registered as the documentation says."""
    program(OPENSSL)
    made = Shell(tmp_path_factory.mktemp("openssl"), server, "openssl-client")
    (made.folder / "manage.py").symlink_to(ROOT / "manage.py")
    made.run("keys")
    made.run("register")
    made.wait_known()
    return made


class Jdk:
    """The example's Java, running."""

    def __init__(self, java: Path) -> None:
        self._process = subprocess.Popen(
            [
                str(java),
                "-XX:TieredStopAtLevel=1",
                str(ROOT / "examples/signing/SignedRequest.java"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *fields: object) -> list[str]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\t".join(map(str, fields)) + "\n")
        self._process.stdin.flush()
        lines = []
        while line := self._process.stdout.readline().rstrip("\n"):
            lines.append(line)
        assert self._process.poll() is None
        return lines

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def jdk() -> Iterator[Jdk]:
    made = Jdk(program(JDK))
    yield made
    made.close()


def post(server: Server, headers: dict[str, str], body: bytes, target: str = URL) -> Any:
    """(status, document) of the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{target}",
        body,
        headers | {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def event() -> bytes:
    return json.dumps(make_event()).encode()


# -- they sign, we verify -------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["legacy", "message"])
def test_the_documentation_s_commands(shell: Shell, scheme: str) -> None:
    sent = make_event()
    (shell.folder / "event.json").write_text(json.dumps(sent))
    answer = json.loads(shell.run(scheme))
    assert (answer["status"], answer["request_id"]) == ("published", sent["request_id"])
    (shell.folder / "event.json").write_text("{}")
    assert json.loads(shell.run(scheme))["code"] == "invalid-event"


@pytest.fixture(scope="module")
def jdk_keys(jdk: Jdk, shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key pair made by the JDK; the publisher knows the public half."""
    folder = tmp_path_factory.mktemp("jdk")
    jdk("keys", folder / "private.pem", folder / "public.pem")
    own = Shell(folder, shell.server, "jdk-client")
    (folder / "manage.py").symlink_to(ROOT / "manage.py")
    own.run("register")
    own.wait_known()
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("target", [URL, f"{URL}?from=a%20b"])
def test_a_jdk_signs(
    jdk: Jdk, jdk_keys: Path, server: Server, tmp_path: Path, scheme: Scheme, target: str
) -> None:
    body = event()
    (tmp_path / "body").write_bytes(body)
    lines = jdk(
        *("headers", scheme, "POST", target, "jdk-client", 1),
        *(jdk_keys / "private.pem", tmp_path / "body"),
    )
    headers = dict(line.split(": ", 1) for line in lines)
    if scheme != "legacy":
        status, document = post(server, headers, body + b" ", target)
        assert (status, document["code"]) == (401, "signature-bad-digest")
    assert post(server, headers, body, target)[0] == 200
    status, document = post(server, headers, body, target)
    assert (status, document["code"]) == (401, "signature-replayed")


def test_another_implementation_signs(shell: Shell, server: Server) -> None:
    import http_message_signatures as peer

    private = (shell.folder / "private.pem").read_bytes()
    keys = peer.MappingKeyResolver(
        public_keys={}, private_keys={"openssl-client:1": _private(private)}
    )
    for algorithm in (peer.algorithms.RSA_V1_5_SHA256, peer.algorithms.RSA_PSS_SHA512):
        body = event()
        request = _Message("POST", f"http://127.0.0.1:{server.port}{URL}?x=1")
        request.headers["WM-Consumer.Id"] = "openssl-client"
        request.headers["Content-Type"] = "application/json"
        peer.HTTPMessageSigner(signature_algorithm=algorithm, key_resolver=keys).sign(
            request,
            key_id="openssl-client:1",
            nonce=os.urandom(8).hex(),
            covered_component_ids=("@method", "@target-uri", "content-type", "wm-consumer.id"),
            body=body,
        )
        status, document = post(server, request.headers, body, f"{URL}?x=1")
        assert status == 200, document


# -- we sign, they verify -------------------------------------------------------------------


@pytest.fixture(params=SCHEMES)
def ours(request: pytest.FixtureRequest, shell: Shell) -> tuple[Scheme, str, bytes, str]:
    """(scheme, target, what was signed, signature in base64) of a request of ours."""
    scheme: Scheme = request.param
    target = f"{URL}?from=a%20b"
    signer = Signer("openssl-client", "1", shell.folder / "private.pem", scheme)
    headers = signer.sign("POST", target, b"body", 1_764_000_000_123)
    if scheme == "legacy":
        return scheme, target, b"openssl-client\n1764000000123\n1\n", headers[signing.SIGNATURE]
    params = headers["Signature-Input"].removeprefix("audit=")
    digest = base64.b64encode(hashlib.sha256(b"body").digest()).decode()
    message = (
        '"@method": POST\n'
        f'"@path": {URL}\n'
        '"@query": ?from=a%20b\n'
        f'"content-digest": sha-256=:{digest}:\n'
        '"wm-consumer.id": openssl-client\n'
        f'"@signature-params": {params}'
    )
    return scheme, target, message.encode(), headers["Signature"].split(":")[1]


def test_a_jdk_verifies_ours(
    ours: tuple[Scheme, str, bytes, str], jdk: Jdk, shell: Shell, tmp_path: Path
) -> None:
    scheme, _, message, signature = ours
    public = shell.folder / "public.pem"
    for change, said in ((b"", "good"), (b" ", "bad")):
        (tmp_path / "message").write_bytes(message + change)
        assert jdk("verify", scheme, public, signature, tmp_path / "message") == [said]


def test_openssl_verifies_ours(
    ours: tuple[Scheme, str, bytes, str], shell: Shell, tmp_path: Path
) -> None:
    scheme, _, message, signature = ours
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    pss = ("-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:64")
    how = ("-sha512", *pss) if scheme == "rsa-pss-sha512" else ("-sha256",)
    public = shell.folder / "public.pem"
    for change, good in ((b"", True), (b" ", False)):
        done = subprocess.run(
            ["openssl", "dgst", *how, "-verify", public, "-signature", tmp_path / "signature"],
            input=message + change,
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) is good, done.stderr


@pytest.mark.parametrize("algorithm", message_signatures.ALGORITHMS)
def test_another_implementation_verifies_ours(
    shell: Shell, algorithm: message_signatures.Algorithm
) -> None:
    import http_message_signatures as peer

    public = _public((shell.folder / "public.pem").read_bytes())
    verifier = peer.HTTPMessageVerifier(
        signature_algorithm={
            "rsa-v1_5-sha256": peer.algorithms.RSA_V1_5_SHA256,
            "rsa-pss-sha512": peer.algorithms.RSA_PSS_SHA512,
        }[algorithm],
        key_resolver=peer.MappingKeyResolver(
            public_keys={"openssl-client:1": public}, private_keys={}
        ),
    )
    signer = Signer("openssl-client", "1", shell.folder / "private.pem", algorithm)
    message = _Message("POST", f"https://audit.example{URL}?a=1")
    message.headers |= signer.sign("POST", f"{URL}?a=1", b"body", int(time.time() * 1000))
    wanted = ("@method", "@path", "@query", "content-digest", "wm-consumer.id")
    (result,) = verifier.verify(message, require_components=wanted, body=b"body")
    assert result.parameters["keyid"] == "openssl-client:1"
    with pytest.raises(peer.InvalidSignature):
        verifier.verify(message, body=b"other")


# -- several processes ----------------------------------------------------------------------


def test_of_two_processes_one_takes_it(shell: Shell, server: Server) -> None:
    signer = Signer("openssl-client", "1", shell.folder / "private.pem", "rsa-pss-sha512")
    for _ in range(5):
        body = event()
        headers = signer.sign("POST", URL, body, int(time.time() * 1000), JSON)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(post, *zip(*[(server, headers, body)] * 16, strict=True)))
        statuses = Counter(status for status, _ in answers)
        assert statuses[200] == 1, statuses
        assert set(statuses) <= {200, 401, 409}
        assert post(server, headers, body)[1]["code"] == "signature-replayed"


class _Message:
    """A request as the other implementation wants it."""

    def __init__(self, method: str, url: str) -> None:
        self.method = method
        self.url = url
        self.headers: dict[str, str] = {}


def _private(pem: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(pem, None)


def _public(pem: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return load_pem_public_key(pem)
