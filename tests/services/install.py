"""Where programs come from: found, or installed by package name into a cache or the system."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.services.errors import Unavailable

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
POLICY = Path("/usr/sbin/policy-rc.d")
POLICY_MARK = "# written by django-api-audit's tests, for the time of one installation"
INSTALL_SECONDS = 900


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where installed parts are kept; outside the checkout, shared by every checkout."""
    if own := environ.get("AUDIT_TEST_CACHE"):
        return Path(own)
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "django-api-audit"


def announce(line: str) -> None:
    """Say what is being installed; pytest's fixtures replace this to get past its capturing."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Recipe(Protocol):
    """One way to get a program."""

    @property
    def cure(self) -> str:
        """What a person types to get it."""

    def blocker(self) -> str | None:
        """Why this machine cannot do it; None if it can."""

    def install(self, title: str) -> None:
        """Do it, or raise `Unavailable`."""


@dataclass(frozen=True)
class Program:
    """Something a service needs: how to find it, and how to get it."""

    title: str
    find: Callable[[], Path | None]
    recipe: Recipe

    def ensure(self) -> Path:
        """Where it is, installing it first if need be."""
        if found := self.find():
            return found
        if reason := self.recipe.blocker():
            raise Unavailable(self.title, reason, self.recipe.cure)
        try:
            self.recipe.install(self.title)
        except OSError as error:  # a cache that cannot be written, a disk that is full
            raise Unavailable(self.title, str(error), self.recipe.cure) from error
        if found := self.find():
            return found
        raise Unavailable(self.title, "it was installed but is not found", self.recipe.cure)


@dataclass(frozen=True)
class Debian:
    """Packages of Debian or a relative; only as root, since we never ask for a password."""

    packages: tuple[str, ...]

    @property
    def cure(self) -> str:
        sudo = "" if os.geteuid() == 0 else "sudo "
        return f"{sudo}apt-get install --no-install-recommends {' '.join(self.packages)}"

    def blocker(self) -> str | None:
        if not shutil.which("apt-get"):
            return "it is not installed, and this machine has no apt-get to install it with"
        if os.geteuid() != 0:
            return "it is not installed, and only root installs packages"
        return None

    def install(self, title: str) -> None:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
        with locked("apt"), no_daemons_started():
            announce(f"installing {title}: Debian packages {', '.join(self.packages)}")
            _apt_update(tuple(apt))
            command = [*apt, "install", "--no-install-recommends", *self.packages]
            run(title, command, self.cure, env=env)


@cache
def _apt_update(apt: tuple[str, ...]) -> None:
    """Once per process; if it fails, the lists that are there may still do."""
    subprocess.run([*apt, "update"], check=False, capture_output=True, timeout=INSTALL_SECONDS)


@dataclass(frozen=True)
class Maven:
    """The artefacts of one profile of our pom, copied (and unpacked, if tar.gz) into the cache."""

    profile: str

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.profile}-{pom_property(f'{self.profile}.version')}"

    @property
    def cure(self) -> str:
        if MVN.find() is None:
            return f"{MVN.recipe.cure}; then python -m tests.services install {self.profile}"
        return f"python -m tests.services install {self.profile}"

    def blocker(self) -> str | None:
        if MVN.find() or not (reason := MVN.recipe.blocker()):
            return None
        return f"it is fetched with Maven, and {reason}"

    def find(self) -> Path | None:
        return self.folder if self.folder.is_dir() else None

    def install(self, title: str) -> None:
        mvn = MVN.ensure()
        # One lock for all of Maven: its local repository is not made for two writers.
        with locked("maven"), into(self.folder) as folder:
            if folder is None:
                return
            announce(f"installing {title}: Maven artefacts into {self.folder}")
            command = [str(mvn), "-B", "-q", "-f", str(POM), f"-P{self.profile}"]
            command += ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
            run(title, command, self.cure)
            for archive in folder.glob("*.tar.gz"):
                shutil.unpack_archive(archive, folder, filter="data")
                archive.unlink()


@cache
def pom_property(name: str) -> str:
    """Versions stand in the pom alone."""
    tree = ElementTree.parse(POM)  # noqa: S314 - our own file
    value = tree.findtext(f"{{*}}properties/{{*}}{name}")
    if value is None:
        raise KeyError(name)
    return value


@dataclass(frozen=True)
class GoModule:
    """A Go program, built into the cache."""

    path: str
    version: str
    service: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def folder(self) -> Path:
        return cache_dir() / f"{self.name}-{self.version}"

    @property
    def cure(self) -> str:
        install = f"python -m tests.services install {self.service}"
        return install if shutil.which("go") else f"install Go, then {install}"

    def blocker(self) -> str | None:
        return None if shutil.which("go") else "it is built with Go, and there is no go on the PATH"

    def find(self) -> Path | None:
        program = self.folder / self.name
        return program if program.is_file() else None

    def install(self, title: str) -> None:
        with locked(self.name), into(self.folder) as folder:
            if folder is None:
                return
            announce(f"installing {title}: Go module {self.path} {self.version}")
            # `go install` refuses to write elsewhere than GOBIN, and GOOS/GOARCH forbid GOBIN.
            env = {k: v for k, v in os.environ.items() if k not in {"GOOS", "GOARCH"}}
            command = ["go", "install", f"{self.path}@{self.version}"]
            run(title, command, self.cure, env={**env, "GOBIN": str(folder)})


def run(
    title: str, command: Sequence[str], cure: str, env: Mapping[str, str] | None = None
) -> None:
    """Run an installing command; a failure is `Unavailable` with the end of what it printed."""
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"`{shlex.join(command)}` took longer than {INSTALL_SECONDS} s"
        raise Unavailable(title, reason, cure) from error
    if done.returncode:
        end = " / ".join(done.stdout.strip().splitlines()[-5:])
        reason = f"`{shlex.join(command)}` ended with {done.returncode}: {end}"
        raise Unavailable(title, reason, cure)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process and one thread at a time install the same thing."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def into(target: Path) -> Iterator[Path | None]:
    """A folder to install into, renamed to `target` at the end, so that target is whole or absent.

    Gives None if target is already there, because another process was faster.
    """
    if target.exists():
        yield None
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)  # an earlier try that was cut short
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def no_daemons_started(policy: Path = POLICY) -> Iterator[None]:
    """Keep Debian's packages from starting their daemons, for the time of one installation."""
    saved = policy.with_name(policy.name + ".django-api-audit")
    _undo_policy(policy, saved)  # an earlier try may have been killed half-way
    if policy.exists() and _forbids(policy):
        yield
        return
    if policy.exists():
        policy.rename(saved)
    try:
        policy.write_text(f"#!/bin/sh\n{POLICY_MARK}\nexit 101\n")
        policy.chmod(0o755)
        yield
    finally:
        _undo_policy(policy, saved)


def _undo_policy(policy: Path, saved: Path) -> None:
    if policy.exists() and POLICY_MARK in policy.read_text(errors="replace"):
        policy.unlink()
    if saved.exists():
        saved.rename(policy)


def _forbids(policy: Path) -> bool:
    """Whether the policy that is there already says no (101) to starting anything."""
    asked = subprocess.run([policy, "some-daemon", "start"], capture_output=True, check=False)
    return asked.returncode == 101


def on_path(*names: str) -> Callable[[], Path | None]:
    """A finder for the first of these programs on the PATH, or where Debian keeps daemons."""

    def find() -> Path | None:
        path = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
        found = (shutil.which(name, path=path) for name in names)
        return next((Path(program) for program in found if program), None)

    return find


def _java() -> Path | None:
    """Java 17 or newer."""
    java = shutil.which("java")
    return Path(java) if java and _java_version(java) >= 17 else None


@cache
def _java_version(java: str) -> int:
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    return int(version[1]) if version else 0


JAVA = Program("Java 17", _java, Debian(("default-jre-headless",)))


def _jdk() -> Path | None:
    """A Java that also compiles."""
    java = _java()
    said = java and subprocess.run([java, "--list-modules"], capture_output=True, check=False)
    return java if said and b"jdk.compiler@" in said.stdout else None


JDK = Program("JDK 17", _jdk, Debian(("default-jdk-headless",)))
OPENSSL = Program("OpenSSL", on_path("openssl"), Debian(("openssl",)))
MVN = Program("Maven", on_path("mvn"), Debian(("maven",)))
