"""What concerns the whole process: forks, and what may be begun by one thread at a time only.

Imported with cvops, so that the hooks are registered before cvops has threads and imports lazily: a hook that another
thread registers while the main thread forks would run after the fork and not before it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import os
import sys
import threading
from _thread import get_ident, start_new_thread
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

# The processors of this process, before an OpenMP library that is loaded later binds the main thread to one of them.
PROCESSORS = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
# How long a fork waits for other threads to end an import or a compilation. They need seconds at most; only a thread
# that waits for the one that forks needs longer, and then a child that cannot compile is better than none.
_PATIENCE_SECONDS = 60.0
# Python's module with hooks that take a lock, as that of `logging` below. Numba may import it, if SciPy is installed.
_POOLS = "concurrent.futures.thread"

_release = operator.methodcaller("release")
_here = threading.local()  # .busy: this thread is within `_alone`; .held: the locks that its fork holds
_first_times = threading.RLock()  # held by `_alone`, and wanted by nobody else but forks
_awaited: list[SimpleQueue[Any]] = []  # by the main thread, innermost call last


@functools.cache  # not sys.modules, where another thread's import may be half done
def load(name: str) -> Any:
    """The module `name`, imported where neither a signal handler nor a fork can come in between."""
    return apart(importlib.import_module, name)


def apart(function: Callable[..., Any], /, *arguments: Any) -> Any:
    """Return `function(*arguments)`, which imports or compiles: what no thread may begin again before it is done.

    A signal handler runs in the main thread, between any two steps of it, and may call an operator. An import or a
    compilation begun within another one finds things half made, and LLVM ends the process. So another thread does
    them, where no handler runs, while the main thread waits. What a handler wants done meanwhile, a third one does
    afterwards.
    """
    if get_ident() != threading.main_thread().ident or sys.is_finalizing() or _is_within_an_import():
        return _alone(function, arguments)
    ended: SimpleQueue[Any] = SimpleQueue()
    _awaited.append(ended)
    try:
        outcome = None
        while outcome is None:  # a child does it again: the thread that did it is its parent's
            try:
                start_new_thread(_report, (ended, function, arguments))
            except RuntimeError:  # the interpreter is about to exit, or the system gives no more threads
                return _alone(function, arguments)
            outcome = ended.get()
    finally:
        _awaited.remove(ended)
    result, error = outcome
    if error is None:
        return result
    try:
        raise error
    finally:
        del outcome, error  # the traceback of the error refers to this frame


def _report(ended: SimpleQueue[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    outcome: tuple[Any, BaseException | None]
    try:
        outcome = _alone(function, arguments), None
    except BaseException as error:
        outcome = None, error
    ended.put(outcome)


def _alone(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    if getattr(_here, "busy", False):
        raise RuntimeError(
            "an operator of cvops was called for the first time by a finaliser or signal handler that interrupted the"
            " import or compilation of another one: call it, or cvops.warmup(), before"
        )
    with _first_times:
        _here.busy = True
        try:
            return function(*arguments)
        finally:
            _here.busy = False


def _is_within_an_import() -> bool:
    """Whether this thread imports something: another thread could then wait for it, and it for that one."""
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


# ------------------------------------------------------------------------------------------------------------- forks
#
# A child has only the thread that forked, and a copy of every lock as it was. Before a fork, in this order:
# 1. The workers end. They may have to compile before they can, so nothing is held while they are waited for.
# 2. What other threads do apart ends: imports and compilations. They take the locks of 3.
# 3. Compilations that cvops did not begin end, then what else is done with LLVM.
# Held from then to the end of the fork: a thread that wants to import, compile or use LLVM waits. All these are
# re-entrant: a signal handler may fork, within a fork too.


def _before_fork() -> None:
    pools_known = _attribute(_POOLS, "ThreadPoolExecutor") is not None
    held: list[Any] = []
    _here.held = [*getattr(_here, "held", ()), held]  # a handler may interrupt this fork with another one
    errors = [_insist(_threads, "end_workers")]
    for lock in _locks():
        errors.append(_insist(_take, lock, held))
    if not pools_known and (lock := _attribute(_POOLS, "_global_shutdown_lock")) is not None:
        # A thread that was waited for has imported them. Of their hooks this fork runs the one that releases, only.
        lock.acquire(timeout=1)
    for error in filter(None, errors):
        raise error


def _after_fork(child: bool) -> None:
    # Nothing is held if another thread has imported cvops since the fork began.
    *_here.held, held = getattr(_here, "held", None) or [()]
    try:
        if child:
            for ended in _awaited:
                ended.put(None)
        if not _here.held:  # else the fork that this one has interrupted is still to come
            _threads("begin_workers")
    finally:
        any(map(_release, reversed(held)))  # one step, which no handler interrupts


def _insist(function: Callable[..., None], *arguments: Any) -> BaseException | None:
    """Call `function` until it returns, and return the error of the signal handler that has interrupted it last.

    Python goes on with a fork whose hook raises, and without the rest of the hook its child may hang.
    """
    interruption = None
    while True:
        try:
            function(*arguments)
            return interruption
        except BaseException as error:
            interruption = error


def _threads(function: str) -> None:
    call = _attribute("cvops._cpu._threads", function)
    if call is not None:  # the CPU backend is in use
        call()


def _locks() -> Iterator[Any]:
    yield _first_times
    yield _attribute("numba.core.compiler_lock", "global_compiler_lock")
    yield getattr(_attribute("llvmlite.binding.ffi", "lib"), "_lock", None)


def _take(lock: Any, held: list[Any]) -> None:
    lock = getattr(lock, "_lock", lock)  # Numba's and LLVM's know no timeout, but what they wrap does
    if lock is None:
        return
    try:
        taken = lock.acquire(timeout=_PATIENCE_SECONDS)
    except BaseException:  # of a signal handler, that ran while this waited for the lock, or when it had it
        with contextlib.suppress(RuntimeError):  # it had not
            lock.release()
        raise
    if taken:
        held.append(lock)


def _attribute(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


# Numba imports it lazily, and it has a hook too, which takes the lock of all loggers. Hooks run before a fork in the
# reverse order of registration: the other threads that ours waits for may want a logger, so ours must be the later.
importlib.import_module("logging")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=functools.partial(_after_fork, child=False),
        after_in_child=functools.partial(_after_fork, child=True),
    )
