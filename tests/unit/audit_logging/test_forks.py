"""A fork waits until our threads are out of libraries that take locks, but not for long."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from audit_logging.forks import within


def in_child(work: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_comes_when_nobody_is_within() -> None:
    inside, stop = [False], threading.Event()

    def work() -> None:
        while not stop.is_set():
            with within:
                inside[0] = True
                time.sleep(0.001)
                inside[0] = False

    threads = [threading.Thread(target=work) for _ in range(1)]
    for thread in threads:
        thread.start()
    try:
        assert all(in_child(lambda: not inside[0]) for _ in range(20))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_that_stays_within_holds_up_neither_the_fork_nor_the_child() -> None:
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with within:
            entered.set()
            leave.wait(30)

    def child() -> bool:
        with within:
            return True

    thread = threading.Thread(target=stay)
    thread.start()
    assert entered.wait(10)
    assert in_child(child)
    leave.set()
    thread.join()
    # And afterwards all is as before.
    assert in_child(child)
