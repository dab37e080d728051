"""The command line: install the servers, start them for a shell, or see which can be had."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time

from tests.services.base import Service, start_all, stop_all
from tests.services.catalog import CATALOG, resolve
from tests.services.errors import ServiceError, Unavailable
from tests.services.install import JAVA, Program
from tests.services.spark import SPARK


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def install(services: list[Service]) -> int:
    """Install what is missing; 1 if something could not be had."""
    failed = 0
    for program in _programs(services):
        begun = time.monotonic()
        try:
            where = program.ensure()
        except Unavailable as error:
            say(str(error))
            failed = 1
        else:
            say(f"{program.title}: {where} ({time.monotonic() - begun:.1f} s)")
    return failed


def up(services: list[Service]) -> int:
    """Start, print the addresses as shell exports, stay until Ctrl-C; 1 if one did not start."""
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    try:
        start_all(services)
    except ServiceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    try:
        for service in services:
            say(f"export {service.env_name}={service.url}")
        sys.stderr.write("# running; Ctrl-C stops them\n")
        leave.wait()
    finally:
        stop_all(services)
    return 0


def check(services: list[Service]) -> int:
    """Which parts can be had here; installs nothing. 1 if one cannot."""
    failed = 0
    for service in services:
        if service.given:
            say(f"{service.name:<16} ok           {service.env_name}={service.given}")
            continue
        for program in service.programs:
            state, detail = _state(program)
            failed |= state == "missing"
            say(f"{service.name:<16} {state:<12} {program.title}: {detail}")
    return failed


def _state(program: Program) -> tuple[str, str]:
    if found := program.find():
        return "ok", str(found)
    if reason := program.recipe.blocker():
        return "missing", f"{reason}. To add it: {program.recipe.cure}"
    return "installable", program.recipe.cure


def _programs(services: list[Service]) -> list[Program]:
    """Each program once, in order; with all services, also what tests run without a server."""
    found = [program for service in services for program in service.programs]
    if len(services) == len(CATALOG):
        found += [JAVA, SPARK]
    return list(dict.fromkeys(found))


COMMANDS = {"install": install, "up": up, "check": check}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.services",
        description=__doc__,
        epilog="Exit codes: 0 all well, 1 a part cannot be had or did not start, 2 wrong usage.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        one.add_argument(
            "names", nargs="*", metavar="name", help=f"{', '.join(CATALOG)}; none means all"
        )
    options = parser.parse_args(arguments)
    try:
        services = resolve(options.names)
    except KeyError as error:
        parser.error(f"no such service: {error.args[0]} (there are {', '.join(CATALOG)})")
    return COMMANDS[options.command](services)


if __name__ == "__main__":
    raise SystemExit(main())
