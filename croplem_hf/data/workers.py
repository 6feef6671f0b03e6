"""Processes that share one source: each gets it once, dies quietly of Ctrl-C, and does not outlive its parent."""

import concurrent.futures
import functools
import multiprocessing.context
import os
import signal
import threading

_source: object = None


class _Process(multiprocessing.context.SpawnProcess):
    """A process that Ctrl-C does not reach before `_start`: Python would print where it was in its imports."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Process


def worker_pool(workers: int, source: object) -> concurrent.futures.ProcessPoolExecutor:
    """A pool whose processes find `source` by `worker_source()`."""
    return concurrent.futures.ProcessPoolExecutor(workers, _Context(), functools.partial(_start, source))


def available_cpus() -> int:
    """Cores that this process may use: on shared nodes fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_source() -> object:
    """The source of the pool that this process belongs to."""
    return _source


def _start(source: object) -> None:
    # Ctrl-C reaches a whole process group: workers die quietly, the parent tells.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # What a parent that was killed left behind would write beside the next run.
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    global _source
    _source = source


__all__ = ["available_cpus", "worker_pool", "worker_source"]
