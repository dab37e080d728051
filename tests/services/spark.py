"""Apache Spark, with a Python of its own: it reads the lake as a user's cluster would."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.services.install import JAVA, Program, announce, cache_dir, into, locked, run


@dataclass(frozen=True)
class PythonPackage:
    """A package of PyPI with what it needs, in a folder of the cache; never among our own."""

    name: str
    version: str

    @property
    def folder(self) -> Path:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cache_dir() / f"{self.name}-{self.version}-python{python}"

    @property
    def cure(self) -> str:
        return f"pip install --target {self.folder} {self.name}=={self.version}"

    def blocker(self) -> str | None:
        return None

    def find(self) -> Path | None:
        return self.folder if (self.folder / self.name).is_dir() else None

    def install(self, title: str) -> None:
        with locked(self.name), into(self.folder) as folder:
            if folder is None:
                return
            announce(f"installing {title}: Python package {self.name} {self.version}")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
            run(title, [*command, f"{self.name}=={self.version}"], self.cure)


PACKAGE = PythonPackage("pyspark", "4.3.0")
SPARK = Program("Spark", PACKAGE.find, PACKAGE)

#: One core and little memory; a session that would bind to other addresses cannot start here.
_SESSION = """
from pyspark.sql import SparkSession
spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.memory", "512m")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .config("spark.sql.shuffle.partitions", "1")
    .config("spark.sql.session.timeZone", "UTC")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
"""


def run_in_spark(script: str, folder: Path, seconds: float = 120) -> None:
    """Run `script`, which finds a session as `spark`, with `folder` as its working folder.

    :raises Unavailable: Spark or Java cannot be had.
    :raises AssertionError: the script failed; with the end of what it said.
    """
    java, packages = JAVA.ensure(), SPARK.ensure()
    done = subprocess.run(
        [sys.executable, "-c", _SESSION + script],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(packages),
            "JAVA_HOME": str(java.resolve().parents[1]),
            "TZ": "UTC",
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
