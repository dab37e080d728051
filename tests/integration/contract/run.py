"""schemathesis over a publisher behind its shipped server; `make contract` is the large run.

Each run has a publisher of its own, with the embedded event log and signatures enforced.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import django
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT_PATH = ROOT / "audit_publisher" / "openapi.json"

#: schemathesis' settings: the operation whose answer is about items takes items that are wrong.
_CONFIG = """
[generation]
deterministic = {deterministic}
database = "none"

[[operations]]
include-path = "/v1/logs/api-requests:batch"
checks.negative_data_rejection.expected-statuses = [200, 400, 401, 404, 405, 413, 415, 422]

[[operations]]
include-operation-id = "captureConfig"
# Headers of this one are hints: what is not understood is ignored.
checks.negative_data_rejection.enabled = false
"""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    :ivar requests: how many the publisher answered.
    :ivar statuses: how many of each status.
    :ivar report: what schemathesis says.
    """

    passed: bool
    requests: int
    statuses: Counter[int]
    report: str
    seconds: float


def run(
    folder: Path, *, examples: int, seed: int, workers: int = 1, deterministic: bool = True
) -> Outcome:
    """Start a publisher and let schemathesis loose on it.

    :param examples: of each operation in each phase; coverage adds some of its own.
    """
    from tests.unit.audit_publisher.served import CONSUMER, serve

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key = folder / "private.pem"
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    config = folder / "schemathesis.toml"
    config.write_text(_CONFIG.format(deterministic=str(deterministic).lower()))
    data = folder / "data"
    data.mkdir()
    access = folder / "access.log"
    options = {
        "GUNICORN_ACCESS_LOG": str(access),
        # A schema cannot say how long ago an event may be.
        "AUDIT_PUBLISHER_MAX_EVENT_AGE_DAYS": "36500",
        "AUDIT_PUBLISHER_MAX_EVENT_AHEAD_DAYS": "36500",
    }
    started = time.monotonic()
    with serve(data, public.decode(), **options) as server:
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            "--config-file",
            str(config),
            "run",
        ]
        command += ["--url", f"http://127.0.0.1:{server.port}", "--checks", "all"]
        command += ["--max-examples", str(examples), "--seed", str(seed), "--no-color"]
        command += ["--workers", str(workers), "--suppress-health-check", "all"]
        command += ["--continue-on-failure", str(DOCUMENT_PATH)]
        environ = os.environ | {
            "SCHEMATHESIS_HOOKS": "tests.integration.contract.hooks",
            "CONTRACT_CONSUMER": CONSUMER,
            "CONTRACT_KEY": str(key),
            "CONTRACT_DOCUMENT": str(DOCUMENT_PATH),
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "AUDIT_DATA_DIR": str(data),
        }
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, check=False
        )
    told = re.findall(r'HTTP/1\.1" (\d{3})$', access.read_text(), re.M)
    statuses = Counter(int(status) for status in told)
    report = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.stdout + done.stderr)
    return Outcome(
        done.returncode == 0,
        sum(statuses.values()),
        statuses,
        report,
        time.monotonic() - started,
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run at length, report, and say by the exit code whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000, help="At least so many.")
    parser.add_argument("--examples", type=int, default=1500, help="Of an operation, in a round.")
    parser.add_argument("--seed", type=int, default=1, help="Of the first round.")
    parser.add_argument("--workers", type=int, default=2, help="Threads that send.")
    arguments = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    statuses: Counter[int] = Counter()
    passed, seed, seconds = True, arguments.seed, 0.0
    while passed and statuses.total() < arguments.requests:
        with tempfile.TemporaryDirectory(prefix="audit-contract-") as folder:
            outcome = run(
                Path(folder),
                examples=arguments.examples,
                seed=seed,
                workers=arguments.workers,
                deterministic=False,
            )
        statuses += outcome.statuses
        seconds += outcome.seconds
        passed = outcome.passed
        _say(f"seed {seed}: {outcome.requests:,} requests, {'good' if passed else 'NOT GOOD'}")
        if not passed:
            _say(outcome.report)
        seed += 1
    faults = sum(count for status, count in statuses.items() if status >= 500)
    _say(json.dumps({"requests": statuses.total(), "faults": faults, "seconds": round(seconds)}))
    _say(json.dumps({str(status): count for status, count in sorted(statuses.items())}))
    return 0 if passed and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
