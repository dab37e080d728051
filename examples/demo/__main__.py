"""`python -m examples.demo`: starts everything, sends requests, shows what became of them."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - the message is for older ones
    sys.exit(
        "The demo needs Python 3.11 or newer; this is "
        f"{sys.version_info[0]}.{sys.version_info[1]}. Run it with another: "
        "make demo PYTHON=/path/to/python3.11"
    )

import argparse
from pathlib import Path


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Runs the whole audit on this machine, from requests to rows of the lake.",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="end after the report; exit status 0 only if every request arrived exactly once",
    )
    parser.add_argument("--requests", type=_positive, default=200, help="how many (200)")
    parser.add_argument(
        "--port-base",
        type=_port,
        default=8100,
        metavar="N",
        help="the example service listens on N, the publisher on N+1 (8100)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path("var/demo"),
        metavar="DIR",
        help="where everything is kept (var/demo)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="add to the rows of earlier runs, not start empty"
    )
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests; give 1 or more")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) < 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give one from 1024 to 65534")
    return int(text)


def main() -> int:
    """Run the demo; return its exit status."""
    options = arguments()
    # Only now, so that a missing package gets its sentence and not a traceback.
    from .prepare import check_packages
    from .processes import DemoError

    try:
        check_packages()
    except DemoError as error:
        sys.exit(str(error))
    from .run import Demo

    return Demo(
        count=options.requests,
        port_base=options.port_base,
        data_dir=options.data_dir.absolute(),
        once=options.once,
        keep=options.keep,
    ).run()


if __name__ == "__main__":
    sys.exit(main())
