"""The one pool of workers: ranges of a kernel's outputs, shared between the caller and a few threads.

Kernels release the GIL, so plain threads suffice. OpenMP is not used: it kills forked children and spins between calls.

There is no lock here. A signal handler, a finaliser, `set_num_threads` or a fork may come between any two steps of a
call, in the caller's own thread, and would wait for ever for a lock that the call holds. What threads share changes by
single steps instead: an assignment, `append` and `pop` of a list, `setdefault` of a dict, `put` and `get` of a
SimpleQueue. For the same reason workers are bare threads: starting one is a single step, while a `threading.Thread`
waits under a lock until it has begun, and an executor adds locks of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import re
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .. import _process
from .._float_environment import adopt, environment

# Handing work to a worker costs about 50 us, so the pool pays from about this much work for one thread.
WORTH_NANOSECONDS = 250_000
# Ranges per thread: a thread that was held up leaves its share to the others.
_RANGES_PER_THREAD = 4

# The system's files with the quota of a container, version 2 and version 1.
_QUOTA_FILES = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
_POLL_SECONDS = 50e-6

_chosen: int | None = None  # by set_num_threads
_here = threading.local()  # .is_worker


def get_num_threads() -> int:
    """Number of threads that one call may use, the caller included."""
    return _default_size() if _chosen is None else _chosen


def set_num_threads(size: int) -> None:
    """Let every later call use `size` threads, the caller included. Workers beyond it stay, and sleep."""
    global _chosen
    _chosen = size


def run(kernel: Callable[..., None], items: int, *args: Any, nanoseconds: float) -> None:
    """Call `kernel(begin, end, *args)` over ranges that cover [0, items) once.

    `nanoseconds` estimates the work for one thread. Which thread takes which range is left to chance, so the result of
    an item may not depend on it.
    """
    threads = min(get_num_threads(), items) if nanoseconds >= WORTH_NANOSECONDS else 1
    team = _team
    if threads <= 1 or not team.open or hasattr(_here, "is_worker") or sys.is_finalizing():
        kernel(0, items, *args)
        return
    count = min(items, threads * _RANGES_PER_THREAD)
    bounds = [items * i // count for i in range(count, -1, -1)]
    ranges = list(zip(bounds[1:], bounds, strict=False))  # the first is last, where pop takes it
    task: list[Any] = [kernel, args]
    of_caller = environment()
    begun: list[None] = []
    finished: list[BaseException | None] = []
    wake: SimpleQueue[None] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                begin, end = ranges.pop()
            except IndexError:
                return
            kernel, args = task
            kernel(begin, end, *args)

    def help() -> None:
        begun.append(None)  # before the first range is taken: the caller waits for all that have begun
        error = None
        try:
            adopt(of_caller)
            work()
        except BaseException as raised:
            error = raised
        finished.append(error)
        wake.put(None)

    try:
        team.call(help, threads - 1)
        work()
    finally:
        ranges.clear()  # if this thread was interrupted, the others stop after their ranges
        _wait(begun, finished, wake)
        task.clear()  # `help` may wait in the queue for a worker, and must not keep the arrays that long
    for error in finished:
        if error is not None:
            raise error


def _wait(begun: list[None], finished: list[BaseException | None], wake: SimpleQueue[None]) -> None:
    """Return when no worker touches the arrays of the call any more: also if a signal handler raises meanwhile."""
    interruption = None
    while len(finished) < len(begun):
        try:
            wake.get()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


class _Team:
    """Threads that wait for something to help with: started when a call first wants so many, ended before a fork."""

    def __init__(self) -> None:
        self.open = True
        self.process = os.getpid()  # a child has none of the threads
        self.wanted: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.seats: dict[int, object] = {}  # whoever puts the mark there starts the thread
        self.alive: dict[int, int] = {}  # seat -> the system's number of the thread
        self.places: dict[int, set[int]] = {}  # seat -> the processors that the thread was given last
        self.placed: tuple[set[int], int] | None = None  # the processors wanted then, and for how many threads

    def call(self, help: Callable[[], None], number: int) -> None:
        """Let up to `number` threads call `help`."""
        if len(self.seats) < number:
            self._start(number)
        if _current_processor is not None and self.alive:
            self._keep_off_this_processor()
        for _ in range(number):
            self.wanted.put(help)

    def _start(self, number: int) -> None:
        for seat in range(number):
            mark = object()
            if self.seats.setdefault(seat, mark) is mark:
                try:
                    start_new_thread(self._serve, (seat,))
                except RuntimeError:  # the interpreter is about to exit, or the system gives no more threads
                    del self.seats[seat]
                    return

    def _serve(self, seat: int) -> None:
        _here.is_worker = True
        if _current_processor is not None:
            self.places[seat] = os.sched_getaffinity(0)
        self.alive[seat] = threading.get_native_id()
        # Looked at after this thread is known, and before anything is begun: `end` closes the team before it looks who
        # is known.
        while self.open:
            help = self.wanted.get()
            if help is None or not self.open:
                break
            help()
            del help  # keeps what it computes with
        del self.alive[seat]

    def end(self) -> None:
        """Let all threads end, and wait for those that have begun something, but for the one that asks for it."""
        self.open = False
        for _ in tuple(self.seats):
            self.wanted.put(None)
        own, threads = threading.get_native_id(), set(self.alive.values())
        while threads & set(self.alive.values()) - {own}:
            time.sleep(_POLL_SECONDS)
        # Since Python 3.12 a fork warns of threads that the system still counts.
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline and any(os.path.exists(f"/proc/self/task/{i}") for i in threads - {own}):
            time.sleep(_POLL_SECONDS)

    def _keep_off_this_processor(self) -> None:
        """Let the threads wake on other processors than the caller's, among those that the caller may use.

        After a rest of the team Linux likes to wake a thread where its caller runs, and leaves both there for tens of
        milliseconds: the call then takes as long as on one thread. A thread that somebody else has put elsewhere in
        the meantime stays there.
        """
        allowed = _allowed_processors()
        wanted = allowed - {_current_processor()} or allowed
        alive = dict(self.alive)
        if self.placed == (wanted, len(alive)):
            return
        for seat, thread in alive.items():
            with contextlib.suppress(OSError, KeyError):  # the thread has ended, or a sandbox forbids it
                if os.sched_getaffinity(thread) == self.places[seat]:
                    os.sched_setaffinity(thread, wanted)
                    self.places[seat] = os.sched_getaffinity(thread)
        self.placed = wanted, len(alive)


def end_workers() -> None:
    """Before a fork: wait until all workers have ended; calls compute alone from now on."""
    _team.end()


def begin_workers() -> None:
    """After a fork: let calls have workers again."""
    global _team
    if not _team.open or _team.process != os.getpid():
        _team = _Team()


def _find_current_processor() -> Any:
    """The function that tells on which processor the caller runs; None where threads cannot be placed."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        return ctypes.CDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return None


def _openmp_binds() -> bool:
    """Whether the user lets OpenMP libraries bind threads: they bind the main thread too, and not for our sake."""
    binding = os.environ.get("OMP_PROC_BIND", "").strip().lower()
    return binding not in ("", "false") or "GOMP_CPU_AFFINITY" in os.environ or "KMP_AFFINITY" in os.environ


def _openmp_places() -> set[int]:
    """The processors among which the OpenMP libraries of this process divide their threads."""
    found: set[int] = set()
    try:
        with open("/proc/self/maps") as file:
            paths = set(re.findall(r"/\S*/lib(?:gomp|i?omp5?)\b\S*\.so\S*", file.read()))
        for library in map(ctypes.CDLL, sorted(paths)):
            for place in range(library.omp_get_num_places()):
                numbers = (ctypes.c_int * library.omp_get_place_num_procs(place))()
                library.omp_get_place_proc_ids(place, numbers)
                found.update(numbers)
    except (AttributeError, OSError):
        pass
    return found


_current_processor: Any = _find_current_processor()
_ours = _process.PROCESSORS | _openmp_places() if _openmp_binds() else frozenset()
_team = _Team()


def _allowed_processors() -> set[int]:
    """The processors that the caller's thread may use, or might if OpenMP had not bound it."""
    return os.sched_getaffinity(0) | _ours


@functools.cache
def _default_size() -> int:
    text = os.environ.get("CVOPS_NUM_THREADS", "").strip()
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"CVOPS_NUM_THREADS must be an integer >= 1, got {text!r}")
        return int(text)
    if hasattr(os, "sched_getaffinity"):
        processors = len(_allowed_processors())
    else:
        processors = os.cpu_count() or 1
    return max(1, min(processors, _cgroup_quota()))


def _cgroup_quota() -> int:
    """Processors that a container's quota is worth, rounded up; very many where there is none."""
    return next(filter(None, map(_quota_of, _QUOTA_FILES)), 1 << 30)


def _quota_of(files: tuple[str, ...]) -> int | None:
    """What these files, together "quota period" in microseconds, are worth; None if they say nothing."""
    try:
        words = []
        for name in files:
            with open(name) as file:
                words += file.read().split()
        quota, period = map(int, words)
    except (OSError, ValueError):  # there are none, or "max", or something else
        return None
    return math.ceil(quota / period) if quota > 0 and period > 0 else None
