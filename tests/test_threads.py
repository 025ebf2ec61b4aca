"""Threads, forks, spawns and the interpreter's exit: in processes of their own, where a crash or a hang is seen."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import cvops
from cvops._cpu import _threads
from tests import libraries

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


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5"])
def test_environment_must_be_a_number_of_threads(text):
    code = """
    import cvops
    try:
        cvops.get_num_threads()
    except ValueError as error:
        print(error)
    """
    assert "CVOPS_NUM_THREADS must be an integer >= 1, got " + repr(text) in run(code, work="", CVOPS_NUM_THREADS=text)


def test_quota_of_a_container_is_rounded_up(monkeypatch, tmp_path):
    def opened(text):
        file = tmp_path / "cpu.max"
        file.write_text(text)
        monkeypatch.setattr("builtins.open", lambda name: file.open())
        return _threads._cgroup_quota()

    assert opened("150000 100000\n") == 2
    assert opened("max 100000\n") > 1000


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


def test_many_python_threads_at_once():
    run("""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(check) for _ in range(32)]:
            future.result()
    """)


def test_first_calls_of_many_python_threads_at_once(tmp_path):
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
    run(code, work="", NUMBA_CACHE_DIR=str(tmp_path))


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


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
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


def test_in_the_workers_of_a_torch_data_loader():
    libraries.require("torch")
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


def test_exit_with_a_daemon_thread_computing():
    run("""
    import threading, time
    def loop():
        while True:
            answers()
    threading.Thread(target=loop, daemon=True).start()
    time.sleep(0.3)
    """)


@pytest.mark.skipif(_threads._current_processor is None, reason="this system does not place threads")
def test_workers_keep_off_the_processor_of_the_caller(threads):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is only one processor")
    threads(3)
    for _ in range(3):  # the first starts the workers
        _threads.run(lambda begin, end: None, 100, nanoseconds=1e9)
    places = [os.sched_getaffinity(worker) for worker in _threads._workers]
    assert places
    assert all(len(place) == len(allowed) - 1 and place < allowed for place in places)
    assert os.sched_getaffinity(0) == allowed
