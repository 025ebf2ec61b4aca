"""The one thread pool: ranges of a kernel's outputs, shared between the caller and a few workers.

Kernels release the GIL, so plain threads suffice. OpenMP is not used: it kills forked children and spins between calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Handing work to a worker costs about 50 us, so the pool pays from about this much work for one thread.
WORTH_NANOSECONDS = 250_000
# Ranges per thread: a thread that was held up leaves its share to the others.
_RANGES_PER_THREAD = 4

_lock = threading.Lock()
_size: int | None = None
_pool: ThreadPoolExecutor | None = None
_workers: list[int] = []  # the system's numbers of the pool's threads
# The processor that the caller runs on; None where the system does not tell or cannot keep a thread off a processor.
_current_processor = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


def get_num_threads() -> int:
    """Number of threads that one call may use, the caller included."""
    global _size
    if _size is None:
        _size = _default_size()
    return _size


def set_num_threads(size: int) -> None:
    """Let every later call use `size` threads, the caller included."""
    global _size
    with _lock:
        _size = size
        _close()


def run(kernel: Callable[..., None], items: int, *args: Any, nanoseconds: float) -> None:
    """Call `kernel(begin, end, *args)` over ranges that cover [0, items) once.

    `nanoseconds` estimates the work for one thread. Which thread takes which range is left to chance, so the result of
    an item may not depend on it.
    """
    threads = min(get_num_threads(), items) if nanoseconds >= WORTH_NANOSECONDS else 1
    if threads <= 1:
        kernel(0, items, *args)
        return
    count = min(items, threads * _RANGES_PER_THREAD)
    bounds = [items * i // count for i in range(count + 1)]
    following = itertools.count()  # next() on it is one step to all threads
    task: list[Any] = [kernel, args]

    def work() -> None:
        kernel, args = task
        while (i := next(following)) < count:
            kernel(bounds[i], bounds[i + 1], *args)

    futures = list(_submit(work, threads - 1))
    work()
    for future in futures:
        if not future.cancel():  # a worker that has not begun has nothing left to do
            future.result()
    task.clear()  # a cancelled future waits in the queue for a worker, and must not keep the arrays that long


def _submit(work: Callable[[], None], times: int) -> Iterator[Any]:
    global _pool
    try:
        with _lock:
            if _pool is None:
                _workers.clear()
                _pool = ThreadPoolExecutor(
                    get_num_threads() - 1,
                    thread_name_prefix="cvops",
                    initializer=lambda: _workers.append(threading.get_native_id()),
                )
            pool = _pool
            _keep_off_this_processor()
        for _ in range(times):
            yield pool.submit(work)
    except RuntimeError:
        return  # the interpreter is exiting or about to fork: the caller does it all


def _keep_off_this_processor() -> None:
    """Let the workers wake on other processors than the caller's.

    After a rest of the pool Linux likes to wake a worker where its caller runs, and leaves both there for tens of
    milliseconds: the call then takes as long as on one thread.
    """
    if _current_processor is None:
        return
    others = os.sched_getaffinity(0) - {_current_processor()}
    if others:
        for worker in _workers:
            with contextlib.suppress(OSError):  # the worker has ended, or a sandbox forbids it
                os.sched_setaffinity(worker, others)


def _default_size() -> int:
    text = os.environ.get("CVOPS_NUM_THREADS", "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"CVOPS_NUM_THREADS must be an integer >= 1, got {text!r}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        processors = len(os.sched_getaffinity(0))
    else:
        processors = os.cpu_count() or 1
    return max(1, min(processors, _cgroup_quota()))


def _cgroup_quota() -> int:
    """Processors that a container's quota is worth, rounded up; very many where there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2: "quota period", quota may be "max"
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1: -1 is no quota
                quota = file.read()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read()
        except OSError:
            quota = "max"
    if quota == "max" or int(quota) <= 0:
        return 1 << 30
    return math.ceil(int(quota) / int(period))


def _close() -> None:
    global _pool
    if _pool is not None:
        _pool.shutdown(wait=True)
        _pool = None


def _before_fork() -> None:
    _lock.acquire()  # held across the fork, so that the child's copy is in a known state
    _close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_lock.release, after_in_child=_lock.release)
