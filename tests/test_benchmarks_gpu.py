"""What of `python -m benchmarks gpu` and `python -m benchmarks.gpu_day` runs without a GPU."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import cvops
from benchmarks import gpu, gpu_cases, gpu_day, harness, heads
from benchmarks.gpu_day import Stage
from tests import data, host_emulation, libraries
from tests.host_emulation import device
from tests.libraries import to_numpy
from tests.operators import OPERATORS
from tests.strategies import few

ROOT = Path(__file__).parents[1]


def test_it_says_what_is_missing():
    if not gpu.missing():
        pytest.skip("nothing is missing")
    command = [sys.executable, "-m", "benchmarks", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "the suite gpu needs a GPU, CuPy, torch and torchvision: " in done.stderr


@pytest.mark.parametrize(("inputs", "copies"), [(0, 4096), (1, 4096), (10_000, 4096), (10**6, 100), (10**9, 2)])
def test_copies_are_twice_as_large_as_the_cache(inputs, copies):
    assert gpu.copies_past(50 * 10**6, inputs) == copies


def test_calls_take_turns():
    call = gpu.in_turns([partial(str, i) for i in range(3)])
    assert [call() for _ in range(5)] == ["0", "1", "2", "0", "1"]


def test_a_gradient_of_each_copy(torch):
    peer = gpu.gradient(lambda given: given["x"] * given["y"], ["x", "y"])
    copies = [{name: torch.tensor([value * scale]) for name, value in (("x", 2.0), ("y", 3.0), ("grad", 1.0))}
              for scale in (1, 10)]  # fmt: skip
    for _ in range(2):
        assert [gpu.to_host(peer(given)) for given in copies] == [(3, 2), (300, 200)]


def test_padded_indices_are_compared_up_to_their_number():
    check = gpu.of_padded(harness.same_indices(np.float32([3, 2, 1])))
    assert check(np.array([0, 2]), (np.array([0, 2, -1]), np.array(2))) == ""
    assert check(np.array([0, 2]), np.array([0, 2])) == ""
    with pytest.raises(harness.DisagreementError):
        check(np.array([0, 2]), (np.array([0, 2, 1]), np.array(3)))


def test_sides_of_decode_boxes_agree(torch, torchvision, monkeypatch):
    """On the CPU, where the same functions run."""

    def compared(table, name, inputs, arrays, functions, check, size):
        tensors = {each: torch.from_numpy(array) for each, array in arrays.items()}
        results = {side: gpu.to_host(function(tensors)) for side, function in functions.items()}
        for result in results.values():
            assert result.shape == (size, 4)
            check(results["torchvision"], result)
        yield from results

    monkeypatch.setattr(gpu, "measured_rows", compared)
    assert list(gpu.decode_boxes_rows(50)) == ["cvops", "cvops, torch tensors", "torchvision"]


def test_sides_of_multiclass_nms_agree(torch, torchvision, monkeypatch):
    """On the CPU, where the same functions run."""

    def compared(table, name, inputs, arrays, functions, check):
        tensors = {each: torch.from_numpy(array) for each, array in arrays.items()}
        results = {side: gpu.to_host(function(tensors)) for side, function in functions.items()}
        for result in results.values():
            assert check(results["torchvision"], result) == check(result, results["torchvision"]) == ""
        with pytest.raises(harness.DisagreementError):
            check(results["cvops"], results["torchvision"][9:])
        yield from results

    monkeypatch.setattr(gpu, "measured_rows", compared)
    for head in heads.SMALL:
        sides = ["cvops", "cvops, torch tensors", "cvops, padded", "cvops, padded, torch tensors", "torchvision"]
        assert list(gpu.multiclass_nms_rows(head)) == sides


class Simulated:
    """CUDA in place of torch's: a queue that has room for so much, and a host that takes its time. In microseconds."""

    HOST, ROOM = 5.0, 1000

    def __init__(self):
        self.now, self.ends = 0.0, [0.0]

    def launch(self, length):
        """Queue a kernel of this length, once there is room; return when it will have ended."""
        self.now = max(self.now, self.ends[-self.ROOM :][0] if len(self.ends) >= self.ROOM else 0) + self.HOST
        self.ends.append(max(self.now, self.ends[-1]) + length)
        return self.ends[-1]

    def wait(self):
        self.now = max(self.now, self.ends[-1])

    def load(self, name):
        event, device = partial(SimulatedEvent, self), types.SimpleNamespace(attributes={"ClockRate": 1e6})
        cuda = types.SimpleNamespace(
            Event=event, Device=lambda: device, synchronize=self.wait, _sleep=lambda cycles: self.launch(cycles / 1e3)
        )
        return types.SimpleNamespace(cuda=cuda)


class SimulatedEvent:
    def __init__(self, simulated, enable_timing):
        self.simulated = simulated

    def record(self):
        self.end = self.simulated.launch(0)

    def query(self):
        return self.end <= self.simulated.now

    def synchronize(self):
        self.simulated.now = max(self.simulated.now, self.end)

    def elapsed_time(self, later):
        return (later.end - self.end) / 1e3


@pytest.fixture
def simulated(monkeypatch):
    simulated = Simulated()
    monkeypatch.setattr(gpu, "load", simulated.load)
    monkeypatch.setattr(gpu, "perf_counter", lambda: simulated.now / 1e6)
    return simulated


@pytest.mark.parametrize(("launches", "length"), [(1, 1), (3, 2), (30, 1), (70, 1), (150, 2), (600, 1)])
def test_device_time_is_without_the_host(simulated, launches, length):
    """Also of many short kernels, for which the host would take longer than the device, or wait for room."""

    def call():
        for _ in range(launches):
            simulated.launch(length)

    assert gpu.device_seconds(call, 64) == pytest.approx(64e-6 * launches * length)


def test_device_time_of_a_call_that_waits(simulated):
    """It shows the host's part."""

    def call():
        simulated.launch(2)
        simulated.wait()

    assert gpu.device_seconds(call, 64) == pytest.approx(64 * (Simulated.HOST + 2) * 1e-6, rel=0.1)


def test_rows_are_timed_by_their_clock():
    boxes, scores, _ = data.clustered(20)
    row = harness.Row(
        table="", name="", inputs="", sides={"a": lambda: (boxes, 1), "b": lambda: (scores, 2)}, check=None,
        clock=lambda call, number: number * call()[1],
    )  # fmt: skip
    record = harness.measured(row, 3)
    assert (record["milliseconds"], record["ratios"]) == ({"a": 1000, "b": 2000}, {"b": 2})


# ------------------------------------------------------------------------------------------------- a day on a GPU

# nms_block, nms_rank, and two batches where batches are small.
TINY = gpu_cases.SMALL._replace(boxes=(31, 700, 1500, 2100))
NUMPY = gpu_day.Library("numpy", np.array, np.transpose, np.asarray)
EMULATED = gpu_day.Library(
    "cuda-emulated",
    lambda array: host_emulation.Array(array.copy()),
    lambda array, axes: host_emulation.Array(array.values.transpose(axes)),
    to_numpy,
)


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(gpu_day, "counts", Counter())
    monkeypatch.setattr(gpu_day, "MOST_FAILURES", 1)
    return gpu_day.counts


def of_day(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu_day", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("arguments", few([(), ("--stage", "smoke"), ("capture", "--budget", "9")], every=3))
def test_a_day_says_what_is_missing(arguments, tmp_path):
    if not gpu.missing():
        pytest.skip("nothing is missing")
    done = of_day(*arguments, "--out", str(tmp_path / "report.txt"))
    assert (done.returncode, done.stdout) == (2, "")
    text = "python -m benchmarks.gpu_day: error: this needs a GPU, CuPy, torch and torchvision: "
    assert done.stderr == f"{text}{gpu.missing()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_day_explains_itself():
    done = of_day("--help")
    assert done.returncode == 0
    assert all(stage.name in done.stdout for stage in gpu_day.stages())
    done = of_day("smoke", "fog")
    assert done.returncode == 2
    assert "no such stage: fog" in done.stderr


def test_stages_of_a_day(monkeypatch):
    monkeypatch.setattr(gpu_day, "sanitized", lambda tool: [tool])
    stages = {stage.name: stage for stage in gpu_day.stages()}
    assert list(stages) == [
        "machine", "smoke", "capture", "torch", "suite", "memcheck", "racecheck", "synccheck", "initcheck", "host",
        "benchmarks",
    ]  # fmt: skip
    for name, stage in stages.items():
        ours = stage.command[:-1] == [sys.executable, "-m", "benchmarks.gpu_day", "--stage"]
        assert ours == (name in gpu_day.OWN)
        assert not ours or stage.command[-1] == name
    assert [name for name, stage in stages.items() if stage.open_ended] == ["benchmarks"]


@pytest.mark.parametrize("missing", [{"xdist"}, {"pytest", "xdist"}, {"hypothesis"}, set()])
def test_a_day_says_how_its_suite_can_run(monkeypatch, missing):
    """In one process it takes longer than the budget."""
    monkeypatch.setattr(gpu_day, "find_spec", lambda name: name not in missing or None)
    suite = next(stage for stage in gpu_day.stages() if stage.name == "suite")
    reason = gpu_day.left_out(suite, 480)
    if missing == {"xdist"}:
        want = "it may take 900 s, and the budget has 480 s left: pip install pytest-xdist, or --budget 1800"
        assert gpu_day.left_out(suite, 1400) == ""
    else:
        names = " and ".join(name for name in ("pytest", "hypothesis") if name in missing)
        want = names and f"{names} not installed: pip install pytest hypothesis pytest-xdist"
    assert reason == want


def test_the_suite_of_a_day_has_every_test_of_a_gpu():
    """It selects them by their parameters; one that looks for a GPU itself would be left out."""
    command = next(stage.command for stage in gpu_day.stages() if stage.name == "suite")
    assert command[-2:] == ["-k", "cupy or torch-cuda"]
    texts = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    assert [name for name, text in texts.items() if "cuda.is_" + "available" in text] == ["libraries.py"]


@pytest.mark.parametrize("where", ["path", ""])
def test_the_sanitizer_is_looked_for(where, monkeypatch):
    monkeypatch.setattr(gpu_day.shutil, "which", lambda name: f"/{where}/{name}" if where else None)
    monkeypatch.setattr(gpu_day.glob, "glob", lambda pattern: [])
    command = gpu_day.sanitized("racecheck")
    if where:
        assert command[:3] == ["/path/compute-sanitizer", "--tool", "racecheck"]
        assert command[-2:] == ["--stage", "small"]
        assert "--error-exitcode" in command
    else:
        assert command == "compute-sanitizer is not found: it is part of the CUDA toolkit"


class Machine:
    """A clock, and commands that take the seconds and have the status that they are made of."""

    def __init__(self):
        self.now, self.ran = 1000.0, []

    def clock(self):
        return self.now

    def run(self, command, limit):
        name, seconds, status = command
        self.ran.append((name, limit))
        self.now += min(float(seconds), limit)
        return (None if float(seconds) > limit else int(status)), f"what {name} printed"


def report(tmp_path, budget, *stages):
    """(whether it passed, the verdicts, what ran with which limits, the text)."""
    machine, out = Machine(), tmp_path / "report.txt"
    passed = gpu_day.report(stages, budget, out, machine.run, machine.clock)
    text = out.read_text()
    verdicts = dict(line.split(maxsplit=1) for line in text.partition("\n\n")[2].partition("\n\n")[0].splitlines())
    return passed, verdicts, machine.ran, text


def stage(name, limit, seconds, status=0, **options):
    return Stage(name, limit, [name, str(seconds), str(status)], **options)


def test_a_report_of_what_passed(tmp_path, capsys):
    passed, verdicts, ran, text = report(tmp_path, 100, stage("a", 50, 20), stage("b", 70, 30))
    assert (passed, ran) == (True, [("a", 50), ("b", 70)])
    assert verdicts == {"a": "passed after 20 s", "b": "passed after 30 s"}
    assert "==== a: passed after 20 s\na 20 0\n\nwhat a printed" in text
    assert text.startswith("cvops on a GPU, ")
    assert capsys.readouterr().out.splitlines() == [f"{name:12}{verdict}" for name, verdict in verdicts.items()]


def test_a_failure_does_not_end_the_day(tmp_path):
    passed, verdicts, ran, text = report(tmp_path, 100, stage("a", 9, 3, 1), stage("b", 9, 20), stage("c", 9, 3))
    assert not passed
    assert [name for name, _ in ran] == ["a", "b", "c"]
    assert verdicts == {
        "a": "FAILED with status 1 after 3 s", "b": "FAILED: stopped after 9 s", "c": "passed after 3 s",
    }  # fmt: skip
    assert "what b printed" in text


def test_what_no_longer_fits_is_left_out(tmp_path):
    stages = stage("a", 60, 45), stage("b", 60, 1), stage("c", 55, 10), Stage("d", 1, "it is not installed")
    passed, verdicts, ran, text = report(tmp_path, 100, *stages)
    assert passed
    assert ran == [("a", 60), ("c", 55)]
    assert verdicts["b"] == "left out: it may take 60 s, and the budget has 55 s left"
    assert verdicts["d"] == "left out: it is not installed"
    assert "==== b" not in text


def test_what_will_be_left_out_is_said_before_anything_runs(tmp_path, capsys):
    """In time to install what is missing."""
    stages = stage("a", 60, 45), stage("b", 200, 1, remedy="pip install b"), Stage("c", 1, "pip install c")
    _, verdicts, _, text = report(tmp_path, 100, *stages)
    assert capsys.readouterr().out.splitlines() == [
        "b           will be left out: it may take 200 s, and the budget has 100 s left: pip install b",
        "c           will be left out: pip install c",
        "a           passed after 45 s",
        "b           left out: it may take 200 s, and the budget has 55 s left: pip install b",
        "c           left out: pip install c",
    ]
    assert "pip install b" in verdicts["b"]
    assert "will be" not in text


def test_a_crash_is_told_by_its_name(tmp_path):
    _, verdicts, *_ = report(tmp_path, 100, stage("a", 9, 3, -11), stage("b", 9, 3, -1000), stage("c", 9, 3, 139))
    assert verdicts == {
        "a": "FAILED by SIGSEGV after 3 s", "b": "FAILED with status -1000 after 3 s",
        "c": "FAILED with status 139 after 3 s",
    }  # fmt: skip


def test_a_report_that_cannot_be_written_is_no_day(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "missing", lambda: "")
    monkeypatch.setattr(gpu_day.resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(gpu_day, "report", None)
    monkeypatch.setattr(sys, "argv", ["gpu_day", "--out", str(tmp_path / "nowhere" / "report.txt")])
    with pytest.raises(SystemExit):
        gpu_day.main()
    assert "error: the report cannot be written: " in capsys.readouterr().err


def test_a_library_that_cannot_be_imported_is_missing(monkeypatch):
    """One for another CUDA than the driver's, for example."""

    def load(name):
        raise ImportError(f"{name} finds no libcudart")

    monkeypatch.setattr(gpu, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu, "load", load)
    assert gpu.missing() == "cupy finds no libcudart"


def test_the_last_stage_takes_what_is_left(tmp_path):
    for seconds, verdict in ((500, "stopped after 80 s, as the budget ends"), (70, "passed after 70 s")):
        passed, verdicts, ran, _ = report(tmp_path, 100, stage("a", 60, 20), stage("b", 30, seconds, open_ended=True))
        assert (passed, ran[-1], verdicts["b"]) == (True, ("b", 80), verdict)
    passed, verdicts, *_ = report(tmp_path, 100, stage("a", 60, 20), stage("b", 30, 9, 3, open_ended=True))
    assert (passed, verdicts["b"]) == (False, "FAILED with status 3 after 9 s")


@pytest.mark.slow
def test_a_command_and_what_it_started_are_stopped():
    child = "import time; time.sleep(1000)"
    parent = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid); {child}"
    status, output = gpu_day.run([sys.executable, "-c", parent], 3)
    assert status is None
    first, *where = output.splitlines()
    assert wait_for_end(int(first))
    assert any('File "<string>", line 1' in line for line in where)
    printed = "import os, sys; print(os.environ['CVOPS_REQUIRE']); print('problem', file=sys.stderr); sys.exit(3)"
    assert gpu_day.run([sys.executable, "-c", printed], 60) == (3, "cupy,torch-cuda\nproblem\n")


def test_a_command_that_cannot_start_fails_alone(tmp_path):
    """What is found as compute-sanitizer may be a folder, or of another machine."""
    status, output = gpu_day.run([str(tmp_path)], 3)
    assert status
    assert str(tmp_path) in output


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what still runs
def test_a_command_that_cannot_be_stopped_does_not_stop_the_day(monkeypatch):
    """One that hangs in the driver outlives SIGKILL."""
    groups = []
    with monkeypatch.context() as patch:
        patch.setattr(gpu_day.os, "killpg", lambda pid, number: groups.append(pid))
        patch.setattr(gpu_day, "PATIENCE", 0.1)
        assert gpu_day.run([sys.executable, "-c", "import time; time.sleep(1000)"], 0.1) == (None, "")
    os.killpg(groups[0], signal.SIGKILL)


def wait_for_end(pid):
    """Whether a process that nobody waits for has ended, if need be after some seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


def test_a_failed_check_does_not_end_a_stage(monkeypatch, capsys):
    monkeypatch.setattr(gpu_day, "counts", Counter())
    for name, error in (("one", ValueError("bad")), ("two", None)):
        with gpu_day.check(name):
            if error:
                raise error
    assert gpu_day.counts == {"failed": 1, "passed": 1}
    assert "FAIL  one\nTraceback" in (out := capsys.readouterr().out)
    assert "ValueError: bad" in out
    assert "ok    two" in out


def test_a_lost_context_ends_a_stage(monkeypatch, capsys):
    def lost():
        raise RuntimeError("an illegal memory access")

    runtime = types.SimpleNamespace(deviceSynchronize=lost)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(gpu_day, "counts", Counter())
    with pytest.raises(SystemExit), gpu_day.check("one"):
        raise ValueError
    assert "The CUDA context is lost: an illegal memory access" in capsys.readouterr().out


def test_convolutions_of_torch_are_compared_without_tf32(torch, monkeypatch):
    """The bounds are those of float32, in a day on a GPU and in the suite."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    cupy = types.SimpleNamespace(asarray=None, transpose=None, asnumpy=None)
    monkeypatch.setattr(gpu_day, "load", {"cupy": cupy, "torch": torch}.get)
    gpu_day.libraries()
    assert not cudnn.allow_tf32
    cudnn.allow_tf32 = True
    monkeypatch.setattr(libraries, "require", lambda name, listed=None: torch)
    monkeypatch.setattr(libraries, "_require_gpu", lambda available, library: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    libraries.CONVERTERS["torch-cuda"]([0.0])
    assert not cudnn.allow_tf32


def test_cases_that_no_graph_can_hold():
    """Those whose results have a length that is read."""
    names = {case.name.partition(",")[0] for case in gpu_cases.cases(gpu_cases.SMALL, ["float32"]) if not case.captured}
    assert names == {name for name, row in OPERATORS.items() if row.ragged}


def test_cases_are_of_every_operator():
    classes = {"DeformConv2d", "PSRoIAlign", "PSRoIPool", "RoIAlign", "RoIPool", "LastLevelMaxPool", "LastLevelP6P7"}
    others = {"get_num_threads", "set_num_threads", "warmup"}  # and what calls the functions
    for sizes in (gpu_cases.SMALL, gpu_cases.FULL):
        names = [case.name for case in gpu_cases.cases(sizes, ["float32"])]
        assert {name.partition(",")[0].partition(".")[0] for name in names} == {*cvops.__all__} - classes - others
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("sizes", [gpu_cases.SMALL, gpu_cases.FULL])
def test_cases_of_several_batches(sizes):
    assert max(sizes.boxes) > host_emulation.nms_module()._BATCH


@pytest.mark.slow
def test_cases_on_the_cpu(counts):
    gpu_day.compared([NUMPY], gpu_cases.cases(TINY, ["float32", "float64", "float16"]))
    assert counts["passed"] > 100


def test_cases_on_cuda(emulated, launches, small_batches, counts, ml_dtypes):
    """They reach every kernel, and may be captured where they say so."""

    def cases():
        for case in gpu_cases.cases(TINY, gpu_day.DTYPES):
            yield case
            if case.captured:
                with device.capture():
                    case.call(**EMULATED.arrays(case))
            elif "nms" in case.name:  # NumPy stands in for CuPy, which would wait or upload in the others
                with device.capture(), pytest.raises(AssertionError, match="while a graph is captured"):
                    case.call(**EMULATED.arrays(case))

    gpu_day.compared([EMULATED], cases())
    assert counts["passed"] > 150
    kernels = {name for file in device.sources().KERNELS.glob("*.cu") for name in device.kernels(file.read_text())}
    assert kernels <= set(launches)


def test_peers_take_the_arrays(torch, torchvision):
    cases = gpu_cases.cases(TINY._replace(odd_rois=False), ["float32"])
    peers = [(case, case.peer()) for case in cases if case.captured]
    for case, peer in peers:
        if peer:
            peer(**{name: torch.from_numpy(array) for name, array in NUMPY.arrays(case).items()})
    assert sum(peer is not None for _, peer in peers) > 15


def test_arrays_keep_their_layout():
    values = np.arange(24.0).reshape(2, 3, 4).transpose(0, 2, 1)
    case = gpu_cases.Case("", print, {"a": values}, print)
    made = NUMPY.arrays(case)["a"]
    assert made.strides == values.strides
    np.testing.assert_array_equal(made, values)


ONES, NAN = np.ones(3, "f"), np.array([1, np.nan, 1], "f")


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (ONES, ONES.astype("d")),
        (ONES, ONES[:2]),
        (ONES * 1.001, ONES),
        (ONES, NAN),
        (NAN, ONES),
        (np.array([1, 2]), np.array([1, 3])),
        ((ONES,), (ONES, ONES)),
        ({"a": ONES}, {"b": ONES}),
        (ONES, None),
    ],
)
def test_answers_that_are_not_close(got, want):
    with pytest.raises((AssertionError, ValueError)):
        gpu_cases.require_close(got, want)


def test_answers_that_are_close():
    gpu_cases.require_close({"a": (NAN, None, np.array([1]))}, {"a": [NAN * np.float32(1 + 1e-6), None, np.array([1])]})


@pytest.mark.parametrize("reads", [True, False])
def test_a_replay_reads_its_inputs(reads, monkeypatch):
    """A graph that always gives the first result is found out."""
    runtime = types.SimpleNamespace(deviceSynchronize=lambda: None)
    monkeypatch.setattr(
        gpu_day, "load", lambda name: types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
    )
    case = gpu_cases.Case("", lambda a, b: (a + b, None), {"a": ONES, "b": NAN}, print)
    arrays = NUMPY.arrays(case)
    result = np.zeros(3, "f")

    def replay():
        result[...] = arrays["a"] + (arrays["b"] if reads else 0)

    if reads:
        gpu_day.replayed(NUMPY, case, arrays, (replay, (result, None)))
    else:
        with pytest.raises(AssertionError, match="the replay gives other bits"):
            gpu_day.replayed(NUMPY, case, arrays, (replay, (result, None)))


def test_host_time_without_a_gpu_tells_what_it_needs():
    """Where CuPy and torch are installed it is measured: a table with a row for each call."""
    command = [sys.executable, "-m", "benchmarks.stand_in"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=gpu_day.ROOT)
    if all(map(importlib.util.find_spec, ("cupy", "torch"))):
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\ncvops.") == 4
    else:
        assert result.returncode == 1
        assert result.stderr.startswith("python -m benchmarks.stand_in: error: ")
