"""The demo's course: start, send, wait, report, stay up, stop."""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import report
from .diagnosis import diagnosis
from .observe import Observer
from .prepare import ADMIN, Places, make_keys, shown
from .processes import DemoError, Interrupted, Supervisor
from .programs import Addresses, Programs, manage_command
from .redacted import secrets_found, what_was_redacted
from .runfile import Port, RunFile, check_ports
from .sender import Answer, send, unexpected
from .traffic import SITES, Call, calls

#: Seconds: for all processes to be ready, and for the next event to arrive.
START, ARRIVE = 60.0, 30.0


class Demo:
    """One run.

    :param count: requests to send.
    :param once: end after the report.
    :param keep: leave the rows of earlier runs.
    """

    def __init__(
        self, *, count: int, port_base: int, data_dir: Path, once: bool, keep: bool
    ) -> None:
        self.batch = calls(count, seed=secrets.randbits(32) if keep else 20250310)
        self.addresses = Addresses(port_base, port_base + 1)
        self.places = Places(data_dir)
        self.programs = Programs(self.places, self.addresses)
        self.once = once
        self.keep = keep
        self.screen = report.Screen()
        self.password = secrets.token_urlsafe(9)

    def run(self) -> int:
        """Run to the end; return the exit status."""
        run_file = RunFile(self.places.run_file)
        try:
            self.places.claim()
            run_file.clear_stale(self.screen.say)
            self._check_ports()
            self.places.make(self.keep)
        except DemoError as error:
            self.screen.problem(str(error))
            return 1
        try:
            with Supervisor(self.places.logs, on_change=run_file.write) as supervisor:
                return self._supervised(supervisor)
        except Interrupted:
            return 130
        finally:
            run_file.remove()

    def _supervised(self, supervisor: Supervisor) -> int:
        supervisor.handle_signals()
        # As a shell tells an interruption; Ctrl-C after the report is none.
        status = 130
        try:
            status = self._course(supervisor)
            if not self.once:
                self._stay(supervisor)
        except Interrupted:
            self.screen.console.print()
        except DemoError as error:
            self.screen.problem(str(error))
            status = 1
        supervisor.stop(lambda name: self.screen.say(f"Stopping {name}."))
        return status

    def _check_ports(self) -> None:
        check_ports(
            [
                Port(self.addresses.service_port, "the example service"),
                Port(self.addresses.publisher_port, "the publisher"),
            ],
            'Or let the demo use other ports: make demo ARGS="--port-base 8200"',
        )

    # -- the course -----------------------------------------------------------------------

    def _course(self, supervisor: Supervisor) -> int:
        self._start(supervisor)
        observer = Observer(self.places, self.batch)
        began = time.monotonic()
        answers = self._send_and_wait(supervisor, observer)
        took = time.monotonic() - began
        problems = [*self._odd_answers(answers), *observer.problems()]
        rows = observer.rows()
        problems += secrets_found(rows.values())
        self._report(observer, rows, problems, took)
        return 1 if problems else 0

    def _start(self, supervisor: Supervisor) -> None:
        screen, programs = self.screen, self.programs
        screen.say(f"Starting; each process writes to its file in {shown(self.places.logs)}")
        make_keys(self.places)
        # What needs no database starts while that is made.
        database = supervisor.start_task(programs.database(self.password))
        for program in (programs.delivery(), programs.service()):
            supervisor.start(program)
        # This process reads the event log and the lake itself, as the project would.
        environ = programs.project_environ()
        os.environ.clear()
        os.environ.update(environ)
        import django

        django.setup()
        supervisor.finish_task(database, START)
        screen.say("database is ready")
        for program in (programs.publisher(), programs.sink(), programs.beat()):
            supervisor.start(program)
        supervisor.wait_ready(START, lambda name: screen.say(f"{name} is ready"))
        screen.say(diagnosis(supervisor, programs.doctors(), START))

    def _send_and_wait(self, supervisor: Supervisor, observer: Observer) -> list[Answer]:
        self.screen.say(f"Sending {len(self.batch)} requests to {self.addresses.service}")
        counts = report.Counts(self.batch)
        port = self.addresses.service_port
        sending = ThreadPoolExecutor(1).submit(
            send, self.batch, "127.0.0.1", port, on_answer=counts.sent
        )
        changed, before = time.monotonic(), ""
        with self.screen.progress(counts) as progress:

            def arrived() -> bool:
                nonlocal changed, before
                counts.seen(observer.look())
                progress.tick()
                if counts.line() != before:
                    changed, before = time.monotonic(), counts.line()
                stuck = time.monotonic() - changed > ARRIVE
                return sending.done() and (observer.complete() or stuck)

            supervisor.until(arrived, 3600, "the requests to arrive", pause=0.1)
        return sending.result()

    def _odd_answers(self, answers: list[Answer]) -> list[str]:
        odd = list(unexpected(answers))
        if not odd:
            return []
        log = shown(self.places.logs / "inventory-api.log")
        return [f"{len(odd)} requests were not answered as expected: {odd[0]}. Read {log}."]

    # -- the report -----------------------------------------------------------------------

    def _report(
        self,
        observer: Observer,
        rows: dict[str, dict[str, Any]],
        problems: list[str],
        took: float,
    ) -> None:
        screen = self.screen
        total = len(self.batch)
        if problems:
            screen.heading("Not as it should be")
            for problem in problems:
                screen.problem(f"  {problem}")
        else:
            screen.heading(
                f"Each of the {total} requests is one row, in the bucket of its site: "
                f"{took:.1f} s from the first request to the last row"
            )
        if rows:
            screen.heading("Where the files lie")
            screen.show(report.files(observer.files))
        failed = self._a_failed_call(rows)
        if failed is not None:
            screen.heading(f"Why did {failed.id[:8]}… fail? From the lake:")
            screen.show(report.explained(rows[failed.id]))
        redacted = what_was_redacted(self.batch, rows)
        if redacted:
            screen.heading("What was redacted before it left the service")
            screen.show(report.redacted(redacted))
        if not self.once:
            self._invite()

    def _a_failed_call(self, rows: dict[str, dict[str, Any]]) -> Call | None:
        # One that says field by field what is wrong, rather than one that says nothing.
        for kind in ("refused", "crash", "missing"):
            for call in self.batch:
                if call.kind == kind and call.id in rows:
                    return call
        return None

    def _invite(self) -> None:
        screen, addresses = self.screen, self.addresses
        screen.heading("Look around (it all stays up until you press Ctrl-C)")
        screen.lines(
            f"{addresses.publisher}/admin/   user {ADMIN}, password {self.password}\n"
            f"{addresses.publisher}/v1/docs    the publisher's API\n"
            f"{addresses.service}/dsd/v1/shipments/SHP70230037   the example service"
        )
        screen.heading("Send a request of your own, and find it a few seconds later")
        sql = (
            "SELECT request_ts, path, response_code, response_body FROM audit_logs "
            "WHERE consumer_id = 'me'"
        )
        screen.lines(
            f"curl -H 'WM-CONSUMER.ID: me' -H 'WM-SITE-ID: {SITES['CA']}' "
            f"{addresses.service}/dsd/v1/shipments/SHP1\n"
            f'{manage_command(self.places)} audit_query "{sql}"'
        )
        screen.console.print()

    def _stay(self, supervisor: Supervisor) -> None:
        while True:
            supervisor.check()
            time.sleep(0.5)
