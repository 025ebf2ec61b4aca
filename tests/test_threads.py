"""Threads, forks, spawns and the interpreter's exit: in processes of their own, where a crash or a hang is seen."""

import ctypes.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

import cvops
from cvops import _process
from cvops._cpu import _threads
from tests.strategies import few

# What every process below computes: large enough for the pool, with the answer computed on one thread.
WORK = """
import numpy as np, cvops
generator = np.random.default_rng(0)
corners = generator.uniform(0, 3000, (20_000, 2)).astype(np.float32)
boxes = np.concatenate([corners, corners + 40], 1)
scores = generator.uniform(size=20_000).astype(np.float32)
classes = generator.integers(0, 7, 20_000)
def answers():
    kept = cvops.nms(boxes, scores, 0.5), cvops.batched_nms(boxes, scores, classes, 0.5)
    return (*kept, cvops.box_iou(boxes[:500], boxes[:4000]))
def check():
    for got, wanted in zip(answers(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
cvops.set_num_threads(1)
expected = answers()
cvops.set_num_threads(3)
check()
"""


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def run(code, work=WORK, **environment):
    """Run `code` after `work` in a new interpreter that turns warnings into errors; return what it prints."""
    program = textwrap.dedent(work) + textwrap.dedent(code)
    return run_python(["-c", program], **environment)


def run_python(arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": ".", **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_set_num_threads_holds(threads):
    threads(3)
    assert cvops.get_num_threads() == 3
    threads(np.int32(1))
    assert cvops.get_num_threads() == 1


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (-2, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_num_threads_refuses(number, error):
    with pytest.raises(error, match="`threads` must be"):
        cvops.set_num_threads(number)


def test_environment_sets_the_threads():
    code = "import cvops; print(cvops.get_num_threads())"
    assert run(code, work="", CVOPS_NUM_THREADS="5").strip() == "5"


@pytest.mark.parametrize("text", few(["0", "two", "-1", "1.5"], every=4))
def test_environment_must_be_a_number_of_threads(text):
    code = """
    import cvops
    try:
        cvops.get_num_threads()
    except ValueError as error:
        print(error)
    """
    assert "CVOPS_NUM_THREADS must be an integer >= 1, got " + repr(text) in run(code, work="", CVOPS_NUM_THREADS=text)


@pytest.mark.parametrize(
    ("texts", "processors"),
    [
        (["150000 100000\n"], 2),
        (["max 100000\n"], 1 << 30),
        (["50000\n", "100000\n"], 1),
        (["-1\n", "100000\n"], 1 << 30),
        (["100000 0\n"], 1 << 30),
        (["nonsense\n"], 1 << 30),
        (["\n"], 1 << 30),
        ([], 1 << 30),
    ],
)
def test_quota_of_a_container_is_rounded_up(monkeypatch, tmp_path, texts, processors):
    files = [tmp_path / str(i) for i in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    monkeypatch.setattr(_threads, "_QUOTA_FILES", ((str(tmp_path / "none"),), files))
    assert _threads._cgroup_quota() == processors


@pytest.mark.parametrize("number", [1, 2, 3, 16])
@pytest.mark.parametrize("items", [1, 2, 7, 100])
def test_ranges_cover_every_item_once(number, items, threads):
    threads(number)
    seen = np.zeros(items, int)

    def kernel(begin, end):
        seen[begin:end] += 1

    _threads.run(kernel, items, nanoseconds=1e9)
    assert (seen == 1).all()


def test_an_exception_in_a_worker_reaches_the_caller(threads):
    threads(2)
    in_worker = threading.Event()

    def kernel(begin, end):
        if threading.current_thread() is not threading.main_thread():
            in_worker.set()
            raise OSError("of the worker")
        in_worker.wait(5)

    with pytest.raises(OSError, match="of the worker"):
        _threads.run(kernel, 100, nanoseconds=1e9)


def test_small_work_starts_no_thread():
    code = """
    import threading, numpy as np, cvops
    cvops.set_num_threads(4)
    cvops.nms(np.ones((500, 4)), np.ones(500), 0.5)
    print(threading.active_count())
    """
    assert run(code, work="").strip() == "1"


@pytest.mark.slow
def test_many_python_threads_at_once():
    run("""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(check) for _ in range(32)]:
            future.result()
    """)


@pytest.mark.parametrize("cache", ["of the suite", pytest.param("empty", marks=pytest.mark.slow)])
def test_first_calls_of_many_python_threads_at_once(tmp_path, cache):
    code = """
    import numpy as np, threading, cvops
    boxes, scores = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32), np.ones(2, np.float32)
    answers = []
    def call():
        answers.append(cvops.nms(boxes, scores, 0.5).tolist())
    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert answers == [[0]] * 6, answers
    """
    run(code, work="", **({"NUMBA_CACHE_DIR": str(tmp_path)} if cache == "empty" else {}))


@needs_fork
def test_forked_children():
    run("""
    import os
    for _ in range(3):
        child = os.fork()
        if child == 0:
            check()
            os._exit(0)
        check()
        assert os.waitpid(child, 0)[1] == 0
    """)


@pytest.mark.slow
@needs_fork
def test_fork_while_other_threads_compute():
    # Python itself warns of forks with other threads alive, rightly: what is tested is that ours do not hang.
    run(
        """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        stop = threading.Event()
        def loop():
            while not stop.is_set():
                check()
        thread = threading.Thread(target=loop)
        thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                check()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        thread.join()
        """
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_multiprocessing(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(WORK)
        + textwrap.dedent(f"""
        import multiprocessing
        def child(_):
            check()
            return cvops.get_num_threads()
        if __name__ == "__main__":
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                assert pool.map(child, range(4)) == [3] * 4
                pool.close()
                pool.join()
        """)
    )
    run_python([str(program)])


def test_in_the_workers_of_a_torch_data_loader(torch):
    run("""
    import torch
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 6
        def __getitem__(self, i):
            check()
            return cvops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)[:10]
    for batch in torch.utils.data.DataLoader(Images(), num_workers=2, multiprocessing_context="fork"):
        np.testing.assert_array_equal(batch[0].numpy(), expected[0][:10])
    """)


@pytest.mark.slow
def test_calls_while_the_interpreter_exits():
    printed = run("""
    import atexit, threading
    def last():
        check()
        print("checked")
    atexit.register(last)
    threading._register_atexit(last)
    """)
    assert printed.split() == ["checked", "checked"]


@pytest.mark.slow
def test_exit_with_a_daemon_thread_computing():
    run("""
    import threading, time
    def loop():
        while True:
            answers()
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(0.3)
    """)


# ------------------------------------------------------------------------- first calls: imports and compilations

# Three operators, small, and not yet imported or compiled.
COLD = """
import os, signal, sys, threading, time, warnings
import numpy as np, cvops
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
cvops.set_num_threads(2)
boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]], "f")
maps, rois = np.ones((1, 2, 8, 8), "f"), np.array([[0, 1, 1, 6, 6]], "f")
operators = [
    lambda: cvops.nms(boxes, boxes[:, 3] - boxes[:, 1], 0.5).tolist() == [0, 2],
    lambda: cvops.roi_pool(maps, rois, 2).tolist() == np.ones((1, 2, 2, 2)).tolist(),
    lambda: cvops.box_iou(boxes, boxes)[0, 0] == 1,
]
def calls():
    for operator in operators:
        assert operator()
"""
every_cache = pytest.mark.parametrize(
    "cache", ["of the suite", pytest.param("empty, then full", marks=pytest.mark.slow)]
)


def cold(code, cache, tmp_path):
    """What processes printed that import, and compile where their cache is empty."""
    if cache == "of the suite":
        return [run(code, work=COLD)]
    return [run(code, work=COLD, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]


@pytest.mark.slow
@needs_fork
@every_cache
@pytest.mark.parametrize("imported", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fork_beside_the_first_calls_of_another_thread(tmp_path, imported, cache):
    """What the child inherits is usable, and nobody waits for ever: not for locks of other modules' hooks either."""
    code = f"""
    if {imported}:
        import cvops._cpu
    failures = []
    def guarded():
        try:
            calls()
        except BaseException as error:
            failures.append(error)
    thread = threading.Thread(target=guarded)
    thread.start()
    children = 0
    while thread.is_alive():
        child = os.fork()
        if child == 0:
            if children in (1, 4):
                assert operators[0]()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        children += 1
    assert not failures, failures
    assert children
    """
    cold(code, cache, tmp_path)


@pytest.mark.slow
@every_cache
def test_a_signal_handler_makes_first_calls_within_first_calls(tmp_path, cache):
    """Neither imports nor Numba can be entered twice by one thread."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timers on this system")
    code = """
    depth, handled = 0, 0
    def handle(*_):
        global depth, handled
        depth += 1
        if depth < 4:
            assert operators[handled % len(operators)]()
            handled += 1
        depth -= 1
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.05)
    calls()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert handled
    """
    cold(code, cache, tmp_path)


@needs_fork
@pytest.mark.slow
def test_a_signal_handler_forks_within_first_calls(tmp_path):
    code = """
    own, children, busy = os.getpid(), [], False
    def handle(*_):
        global busy
        if os.getpid() == own and not busy and len(children) < 4:  # a child goes on with all forks that are not over
            busy = True
            children.append(os.fork())
            busy = False
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.1)
    calls()
    signal.setitimer(signal.ITIMER_REAL, 0)
    calls()
    if os.getpid() != own:
        os._exit(0)  # a child, which went on with the calls from where they were interrupted
    assert children
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    """
    run(code, work=COLD, NUMBA_CACHE_DIR=str(tmp_path))


def test_a_finaliser_within_a_compilation_is_refused():
    with pytest.raises(RuntimeError, match="finaliser or signal handler"):
        _process.apart(_process.apart, len, "")
    assert _process.apart(len, "abc") == 3


def test_an_error_of_what_is_done_apart_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        _process.apart(lambda: 1 // 0)
    with pytest.raises(ModuleNotFoundError):
        _process.load("cvops.no_such_module")


@pytest.mark.slow
@every_cache
@pytest.mark.parametrize("imported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_first_calls_while_the_interpreter_exits(tmp_path, imported, cache):
    code = f"""
    import atexit
    if {imported}:
        import cvops._cpu
    def last():
        calls()
        print("checked")
    class Last:
        def __del__(self):
            last()
    atexit.register(last)
    threading._register_atexit(last)
    threading.Thread(target=lambda: (threading.main_thread().join(), last())).start()
    """
    for printed in cold(code, cache, tmp_path):
        assert printed.split() == ["checked"] * 3


@pytest.mark.slow
def test_calls_of_finalisers_at_the_very_end():
    """When sys.modules is empty, and new threads would never run."""
    printed = run("""
    class Last:
        def __del__(self, answers=answers, expected=expected, print=print, zip=zip):
            print(all((got == wanted).all() for got, wanted in zip(answers(), expected)))
    last = Last()
    last.itself = last
    """)
    assert printed.split() == ["True"]


# ------------------------------------------------------------------------------------------------------- signals


EVERYWHERE = """
import os, signal, sys, threading
import numpy as np, cvops
from cvops._cpu import _threads
cvops.set_num_threads(3)
boxes = np.random.default_rng(0).uniform(0, 50, (1500, 4)).astype("f")
expected = cvops.box_iou(boxes, boxes)
def same():
    return np.array_equal(cvops.box_iou(boxes, boxes), expected, equal_nan=True)
assert same()
handled = 0
def everywhere(handler, every=1):
    "Call an operator; before every line of Python in it, or every so many, a signal comes."
    def handle(*_):
        global handled
        handled += 1
        if handled % every == 0:
            handler()
    signal.signal(signal.SIGUSR1, handle)
    def trace(frame, event, argument):
        signal.raise_signal(signal.SIGUSR1)
        return trace
    sys.settrace(trace)
    got = cvops.box_iou(boxes, boxes)
    sys.settrace(None)
    assert np.array_equal(got, expected, equal_nan=True)
    assert handled > 20
"""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["(3,)", pytest.param("(1, 2, 4)", marks=pytest.mark.slow)])
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal on this system")
def test_a_signal_handler_calls_operators_everywhere(sizes):
    code = f"""
    import itertools
    sizes = itertools.cycle({sizes})
    def handler():
        cvops.set_num_threads(next(sizes))
        assert same()
    everywhere(handler)
    """
    run(code, work=EVERYWHERE)


@needs_fork
@pytest.mark.slow
def test_a_signal_handler_forks_everywhere():
    """Child and parent both go on with the call from where it was interrupted, and both get the answer."""
    code = """
    own, children = os.getpid(), []
    def handler():
        if os.getpid() == own:
            children.append(os.fork())
    everywhere(handler, every=3)
    assert same()
    if os.getpid() != own:
        os._exit(0)
    assert len(children) > 7
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    """
    run(code, work=EVERYWHERE)


# Before a fork, Python takes a lock of thread pools and one of loggers, from version 3.9 on at least to 3.15. The first
# is not re-entrant, and a child makes both anew: a fork within a fork waits for ever, or a child that goes on with the
# outer fork complains, without cvops too (`test_python_itself_waits_for_ever_in_a_fork_within_a_fork`). Whether the
# pools are imported is up to others: SciPy does since 1.18, which Numba imports. So these tests leave both hooks out.
WITHOUT_HOOKS_OF_PYTHON = """
import os, threading
register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
import concurrent.futures.thread, logging
os.register_at_fork = register
"""


@pytest.mark.slow
@needs_fork
def test_python_itself_waits_for_ever_in_a_fork_within_a_fork():
    """If this fails, Python has mended it: then WITHOUT_HOOKS_OF_PYTHON may leave out the hook of loggers only."""
    code = """
    import os, signal, sys
    def again():
        if not begun:
            begun.append(True)
            if os.fork() == 0:
                os._exit(0)
    def stop(*_):
        print("waits for ever", flush=True)
        os._exit(0)
    begun = []
    os.register_at_fork(after_in_parent=again)
    import concurrent.futures.thread
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(2)
    if os.fork() == 0:
        os._exit(0)
    assert "cvops" not in sys.modules
    print("ends")
    """
    assert run(code, work="").strip() == "waits for ever"


@pytest.mark.slow
@needs_fork
def test_a_signal_handler_forks_within_a_fork():
    code = """
    own, children, begun = os.getpid(), [], 0
    def handle(*_):
        global begun
        if os.getpid() == own and begun < 40:
            begun += 1
            child = os.fork()
            if child == 0:
                os._exit(0 if same() else 1)
            children.append(child)
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.003)
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if same() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert same()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert children
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    """
    run(code, work=WITHOUT_HOOKS_OF_PYTHON + EVERYWHERE)


FORK_WITHIN_A_FORK = """
import os, sys
alive = []
os.register_at_fork(before=lambda: alive.append(set(sys.modules["cvops._cpu._threads"]._team.alive)))
again = lambda: None
os.register_at_fork(before=lambda: again(), after_in_parent=lambda: again(), after_in_child=lambda: again())
import gc
from cvops import _process
exec(EVERYWHERE)
os.register_at_fork(before=lambda: again(), after_in_parent=lambda: again(), after_in_child=lambda: again())
own, children, inside = os.getpid(), [], False
def fork_within(*_):
    "Fork, and let parent and child go on with what was interrupted."
    global inside
    if inside or os.getpid() != own:
        return
    inside = True
    child = os.fork()
    assert same()
    if child:
        children.append(child)
    elif END:
        os._exit(0)
    inside = False
def free(lock):
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False) and lock.release()))
    thread.start()
    thread.join()
    return got == [None]
def check(at_least):
    "After the outer fork."
    assert same()
    assert free(_process._first_times)
    assert not any(alive), alive
    assert _threads._team.open and _threads._team.alive
    if os.getpid() != own:
        os._exit(0)
    assert len(children) >= at_least, len(children)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("end", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", [pytest.param("signal", marks=pytest.mark.slow), "hook", "finaliser"])
def test_forks_within_a_fork(way, end):
    """Everywhere in it: no lock stays held, no worker is at work when a fork happens, and all get the answer."""
    code = {
        "signal": """
        signal.signal(signal.SIGUSR1, fork_within)
        def trace(frame, event, argument):
            if not inside:
                signal.raise_signal(signal.SIGUSR1)
            return trace
        sys.settrace(trace)
        children.append(os.fork())
        sys.settrace(None)
        check(30)
        """,
        "hook": """
        again = fork_within
        children.append(os.fork())
        check(5)
        """,
        "finaliser": """
        class Last:
            def __init__(self): self.itself = self
            def __del__(self): fork_within()
        def again():
            if not inside:
                Last()
                gc.collect()
        children.append(os.fork())
        check(5)
        """,
    }[way]
    work = f"{WITHOUT_HOOKS_OF_PYTHON}\nEND, EVERYWHERE = {end}, {EVERYWHERE!r}\n{FORK_WITHIN_A_FORK}"
    run(code, work=work)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("waits_for", ["compilation", "worker"])
def test_a_handler_raises_while_a_fork_waits(waits_for):
    """Python drops the error, as it does in hooks; the child can compile all the same."""
    code = f"""
    import os, signal, sys, threading, time
    import numpy as np, cvops
    from cvops import _process
    from cvops._cpu import _threads
    begun, done = threading.Event(), []
    def slow(*_):
        begun.set()
        time.sleep(0.5)
        done.append(True)
    if {waits_for!r} == "compilation":
        threading.Thread(target=_process.apart, args=(slow,)).start()
    else:
        _threads._team.call(slow, 1)
    begun.wait()
    class Alarm(Exception):
        pass
    def handle(*_):
        raised.append(True)
        raise Alarm
    raised, dropped = [], []
    sys.unraisablehook = lambda unraisable: dropped.append(unraisable.exc_type)
    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    child = os.fork()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert raised
    assert done
    assert set(dropped) == {{Alarm}}, dropped
    if child == 0:
        cvops.box_iou(np.ones((1, 4), "f"), np.ones((1, 4), "f"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    cvops.box_iou(np.ones((1, 4), "f"), np.ones((1, 4), "f"))
    threading.Thread(target=_process.apart, args=(done.clear,)).start()
    while done:
        time.sleep(0.01)
    """
    run(code, work="")


@pytest.mark.parametrize("taken", [True, False])
def test_a_handler_raises_when_a_fork_takes_a_lock(taken):
    class Lock:
        def __init__(self):
            self._lock, self.lock, self.interruptions = self, threading.RLock(), 3

        def acquire(self, timeout):
            if taken or not self.interruptions:
                assert self.lock.acquire()
            if self.interruptions:
                self.interruptions -= 1
                raise KeyboardInterrupt
            return True

        def release(self):
            self.lock.release()

    lock, held = Lock(), []
    assert isinstance(_process._insist(_process._take, lock, held), KeyboardInterrupt)
    assert held == [lock]
    lock.release()
    with pytest.raises(RuntimeError):  # it was held once
        lock.release()


@pytest.mark.slow
@needs_fork
def test_a_thread_imports_thread_pools_while_a_fork_waits():
    """Of the hooks that it registers, the fork runs only those after it: they would release what was never taken."""
    code = """
    import os, sys, threading, time
    import cvops
    from cvops import _process
    begun = threading.Event()
    def slow():
        begun.set()
        time.sleep(0.3)
        import concurrent.futures.thread
    assert "concurrent.futures.thread" not in sys.modules
    thread = threading.Thread(target=_process.apart, args=(slow,))
    thread.start()
    begun.wait()
    child = os.fork()
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as pool:
        assert pool.submit(len, "abc").result() == 3
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    """
    run(code, work="")


def test_an_interrupted_call_leaves_no_worker_at_work(threads):
    """The memory of a call may be gone when it has raised."""
    threads(3)
    working = []

    def kernel(begin, end):
        if threading.current_thread() is threading.main_thread():
            while not working:
                time.sleep(0.001)
            raise KeyboardInterrupt
        working.append(begin)
        time.sleep(0.05)
        working.remove(begin)

    with pytest.raises(KeyboardInterrupt):
        _threads.run(kernel, 100, nanoseconds=1e9)
    assert not working


def test_a_call_within_a_worker_stays_there(threads):
    threads(3)
    seen = []

    def outer(begin, end):
        own = threading.get_ident()
        inner = set()
        _threads.run(lambda begin, end: inner.add(threading.get_ident()), 100, nanoseconds=1e9)
        seen.append(inner == {own} or own == threading.main_thread().ident)
        time.sleep(0.001)

    _threads.run(outer, 30, nanoseconds=1e9)
    assert len(seen) == 12
    assert all(seen)


@pytest.mark.slow
def test_calls_beside_changes_of_the_number_of_threads():
    code = """
    sys.setswitchinterval(1e-5)
    stop, failures = threading.Event(), []
    def change():
        while not stop.is_set():
            for size in (1, 3, 1, 2, 5):
                cvops.set_num_threads(size)
    def call():
        try:
            for _ in range(50):
                assert same()
        except BaseException as error:
            failures.append(error)
    changer, callers = threading.Thread(target=change), [threading.Thread(target=call) for _ in range(4)]
    for thread in (changer, *callers): thread.start()
    for thread in callers: thread.join()
    stop.set()
    changer.join()
    assert not failures, failures
    """
    run(code, work=EVERYWHERE)


# --------------------------------------------------------------------------------------------------------- forks


@pytest.mark.slow
def test_only_the_import_of_cvops_registers_hooks():
    """One registered by a lazy import could be registered by one thread while another one forks."""
    code = """
    import os, sys
    register, owners = getattr(os, "register_at_fork", None), []
    def spy(**hooks):
        owners.append((sys._getframe(1).f_globals["__name__"], "before" in hooks))
        register(**hooks)
    os.register_at_fork = spy
    import cvops
    early = list(owners)
    import numpy as np
    cvops.nms(np.ones((3, 4)), np.ones(3), 0.5)
    cvops.set_num_threads(2)
    cvops.box_iou(np.ones((3000, 4)), np.ones((3000, 4)))
    late = owners[len(early):]
    of_python = sys.stdlib_module_names  # random, and importlib from 3.15 on: those have nothing to release
    late = [owner for owner, before in late if before or owner.partition(".")[0] not in of_python]
    print([owner for owner, _ in early if owner.startswith("cvops")], set(late) - {"concurrent.futures.thread"})
    """
    assert run(code, work="").strip() == "['cvops._process'] set()"


def test_the_order_of_a_fork(monkeypatch):
    """Workers end first, as they may have to compile; what compiles may import, and both use LLVM."""
    done = []

    class Lock:
        def __init__(self, name, free=True):
            self.name, self.free, self._lock = name, free, self

        def acquire(self, timeout):
            done.append(f"take {self.name}")
            return self.free

        def release(self):
            done.append(f"leave {self.name}")

    class Module:
        global_compiler_lock = Lock("compiler", free=False)  # nor is one that was not taken in time released
        lib = Lock("llvm")
        end_workers = staticmethod(lambda: done.append("end workers"))
        begin_workers = staticmethod(lambda: done.append("begin workers"))

    for name in ("cvops._cpu._threads", "numba.core.compiler_lock", "llvmlite.binding.ffi"):
        monkeypatch.setitem(sys.modules, name, Module)
    monkeypatch.setattr(_process, "_first_times", Lock("first times"))
    _process._before_fork()
    assert done == ["end workers", "take first times", "take compiler", "take llvm"]
    _process._before_fork()  # a signal handler forks within
    del done[:]
    _process._after_fork(child=True)
    assert done == ["leave llvm", "leave first times"]  # the workers wait for the outer fork
    del done[:]
    _process._after_fork(child=False)
    assert done == ["begin workers", "leave llvm", "leave first times"]
    del done[:]
    _process._after_fork(child=False)  # of a fork that began before cvops was imported
    assert done == ["begin workers"]


@pytest.mark.slow
@needs_fork
def test_a_fork_waits_for_workers():
    run("""
    import os
    from cvops._cpu import _threads
    team = _threads._team
    assert team.alive
    child = os.fork()
    if child == 0:
        assert not team.alive
        assert not _threads._team.seats
        check()
        assert _threads._team.alive
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not team.alive
    assert _threads._team.open
    assert not _threads._team.seats
    check()
    """)


# ------------------------------------------------------------------------------------- processors and other systems

places_threads = pytest.mark.skipif(
    _threads._current_processor is None or len(os.sched_getaffinity(0)) < 2,
    reason="this system does not place threads, or has one processor",
)


@pytest.fixture
def team(threads, monkeypatch):
    """A new team of workers that has begun to work for this thread."""
    threads(3)
    monkeypatch.setattr(_threads, "_team", _threads._Team())
    own = os.sched_getaffinity(0)
    call_team()
    yield _threads._team
    os.sched_setaffinity(0, own)
    _threads._team.end()


def call_team():
    for _ in range(3):  # the first starts the workers
        _threads.run(lambda begin, end: time.sleep(0.001), 100, nanoseconds=1e9)


def places(team):
    return [os.sched_getaffinity(thread) for thread in team.alive.values()]


@places_threads
def test_workers_keep_off_the_processor_of_the_caller(team):
    allowed = os.sched_getaffinity(0)
    assert places(team)
    assert all(len(place) == len(allowed) - 1 and place < allowed for place in places(team))
    assert os.sched_getaffinity(0) == allowed


@places_threads
def test_workers_follow_the_caller_and_its_mask(team):
    allowed = os.sched_getaffinity(0)
    for processor in sorted(allowed)[:2] * 2:
        os.sched_setaffinity(0, {processor})
        call_team()
        assert places(team) == [{processor}] * 2  # the caller may use no other
    os.sched_setaffinity(0, allowed)
    for processor in sorted(allowed)[:2] * 2:
        team_sees(team, processor)
        assert places(team) == [allowed - {processor}] * 2


def team_sees(team, processor):
    """A call by a thread on this processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_threads, "_current_processor", lambda: processor)
        call_team()


@places_threads
def test_workers_stay_where_the_user_puts_them(team):
    first, second, *_ = sorted(os.sched_getaffinity(0))
    team_sees(team, first)
    one, other = team.alive.values()
    os.sched_setaffinity(one, {first})
    for processor in (second, first):
        team_sees(team, processor)
        assert os.sched_getaffinity(one) == {first}
        assert processor not in os.sched_getaffinity(other)


OPENMP = """
import os
allowed = os.sched_getaffinity(0)
if {first}:
    import cvops
{bind}
if len(os.sched_getaffinity(0)) < len(allowed) or not {bound}:
    import cvops, numpy as np
    from cvops._cpu import _threads
    print(cvops.get_num_threads() == len(allowed))
    cvops.set_num_threads(2)
    for _ in range(3):
        cvops.box_iou(np.ones((3000, 4), "f"), np.ones((3000, 4), "f"))
    print([os.sched_getaffinity(thread) < allowed for thread in _threads._team.alive.values()])
    print(os.sched_getaffinity(0) in [os.sched_getaffinity(thread) for thread in _threads._team.alive.values()])
"""


@pytest.mark.slow
@places_threads
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_openmp_confines_no_worker(first):
    """libgomp binds the main thread when it is loaded."""
    libgomp = ctypes.util.find_library("gomp")
    if libgomp is None:
        pytest.skip("no libgomp")
    code = OPENMP.format(first=first, bound=True, bind=f"import ctypes; ctypes.CDLL({libgomp!r})")
    assert run(code, work="", OMP_PROC_BIND="true").split("\n")[:3] == ["True", "[True]", "False"]


@pytest.mark.slow
@places_threads
def test_without_openmp_the_mask_of_the_caller_holds():
    bind = "os.sched_setaffinity(0, {min(allowed)})"
    code = OPENMP.format(first=True, bound=True, bind=bind)
    assert run(code, work="").split("\n")[:3] == ["False", "[True]", "True"]


@pytest.mark.slow
def test_on_systems_with_less():
    """As on Windows and macOS: no affinity, no forks, no processor numbers, no library of the process itself."""
    code = """
    import builtins, ctypes, io, os, threading
    for name in ("sched_getaffinity", "sched_setaffinity", "register_at_fork", "fork"):
        if hasattr(os, name):
            delattr(os, name)
    load, open_ = ctypes.CDLL, open
    def load_named(name, *more, **options):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        return load(name, *more, **options)
    def open_other(file, *more, **options):
        if str(file).startswith(("/sys", "/proc")):
            raise FileNotFoundError(file)
        return open_(file, *more, **options)
    ctypes.CDLL, builtins.open = load_named, open_other
    import numpy as np, cvops
    assert cvops.get_num_threads() == os.cpu_count()
    cvops.set_num_threads(3)
    assert cvops.box_iou(np.ones((3000, 4), "f"), np.ones((3000, 4), "f")).shape == (3000, 3000)
    from cvops._cpu import _threads
    assert _threads._team.alive
    """
    run(code, work="")


@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_no_current_processor_where_the_system_does_not_tell(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert _threads._find_current_processor() is None


def test_workers_compute_as_their_caller(threads, torch):
    """torch, like XLA, may let a thread take subnormal numbers for zero; workers are threads of their own."""
    features = np.full((1, 64, 64, 64), 1e-40, np.float32)
    rois = np.full((400, 5), [0, 1, 1, 50, 50], np.float32)
    for flushes in (True, False, True):
        torch.set_flush_denormal(flushes)
        try:
            threads(1)
            alone = cvops.roi_align(features, rois, 7, 1.0, 2)
            threads(3)
            shared = [cvops.roi_align(features, rois, 7, 1.0, 2) for _ in range(9)]
        finally:
            torch.set_flush_denormal(False)
        assert [(array.view(np.int32) != alone.view(np.int32)).sum() for array in shared] == [0] * 9
