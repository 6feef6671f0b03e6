"""Signals in a pretraining run: the step in progress is finished first, and loaders outlive Ctrl-C until then."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the step in progress can be finished; a second Ctrl-C stops at once."""
    caught: list[int] = []

    def handle(number: int, frame) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    """First thing of a loader process: Ctrl-C and launchers signal whole process groups, and it must outlive that."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Schedulers signal every process by itself; the loader ends loaders in another way, and their parent's death does.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


__all__ = ["catch_signals", "leave_signals_to_parent"]
