"""All that a GPU can say about cvops, in one report: `make gpu`, or `python -m benchmarks.gpu_day`.

Stages run one after the other, the most telling first, each in a process of its own: what one of them breaks, a lost
CUDA context included, ends that one only. Each has a limit of seconds, and does not begin if the budget has fewer left.
The report says of every stage whether it passed, failed or was left out, and then everything that it printed.
`python -m benchmarks.gpu_day smoke capture` runs some stages only.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import glob
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, NamedTuple

import numpy as np

from tests.data import Array

from . import gpu
from .gpu import load
from .gpu_cases import FULL, SMALL, Case, cases, require_close

ROOT = Path(__file__).parents[1]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
MOST_FAILURES = 25  # of a stage
PATIENCE = 10.0  # seconds for a process to end once it is killed
LONG = 200_000_000  # cycles for which a stream sleeps: about 0.1 s

# ------------------------------------------------------------------------------------------------------------ stages


class Stage(NamedTuple):
    """A command, or the reason why it cannot run here."""

    name: str
    limit: int  # seconds after which it is stopped
    command: list[str] | str
    open_ended: bool = False  # runs for as long as the budget lasts, at least for `limit`; being stopped is no failure
    remedy: str = ""  # what makes it take less


def stages() -> list[Stage]:
    """In the order of what one wants to know first; limits are 2 to 3 times what an H100 took for 4 of 5 cases."""

    def own(name: str, limit: int) -> Stage:
        return Stage(name, limit, [sys.executable, "-m", "benchmarks.gpu_day", "--stage", name])

    workers = ["-n", "8"] if find_spec("xdist") else []
    suite = [sys.executable, "-m", "pytest", *workers, "-p", "no:cacheprovider", "--maxfail=60", "--tb=short"]
    tests_missing = [package for package in ("pytest", "hypothesis") if not find_spec(package)]
    rows = [sys.executable, "-m", "benchmarks", "gpu", "--repeats", "3", "--out", f"{tempfile.gettempdir()}/cvops-gpu"]
    return [
        own("machine", 40),
        own("smoke", 180),
        own("capture", 60),
        own("torch", 90),
        Stage(
            "suite", 150 if workers else 900,
            f"{' and '.join(tests_missing)} not installed: pip install pytest hypothesis pytest-xdist" if tests_missing
            else [*suite, "-k", "cupy or torch-cuda"],
            remedy="" if workers else "pip install pytest-xdist, or --budget 1800",  # eight processes take 150 s
        ),
        *(Stage(tool, limit, sanitized(tool)) for tool, limit in SANITIZERS.items()),
        own("host", 40),
        Stage("benchmarks", 30, rows, open_ended=True),
    ]  # fmt: skip


SANITIZERS = {"memcheck": 90, "racecheck": 150, "synccheck": 60, "initcheck": 60}
ENVIRONMENT = {
    "CVOPS_REQUIRE": "cupy,torch-cuda",
    "JAX_PLATFORMS": "cpu",  # JAX is not what is tested, and takes most of the memory of a GPU that it finds
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",  # where a crash, or what is stopped, was
}


def sanitized(tool: str) -> list[str] | str:
    """The command that runs the small cases under a tool of compute-sanitizer."""
    places = [shutil.which("compute-sanitizer"), *glob.glob("/usr/local/cuda*/bin/compute-sanitizer"),
              *glob.glob("/opt/nvidia/*/compute-sanitizer")]  # fmt: skip
    found = next(filter(None, places), None)
    if found is None:
        return "compute-sanitizer is not found: it is part of the CUDA toolkit"
    options = ["--tool", tool, "--error-exitcode", "1", "--print-limit", "20"]
    return [found, *options, sys.executable, "-m", "benchmarks.gpu_day", "--stage", "small"]


Run = Callable[[list[str], float], tuple[int | None, str]]


def run(command: list[str], limit: float) -> tuple[int | None, str]:
    """(exit status, None if it was stopped at the limit; what it printed)."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return 126, f"{error}\n"  # as a shell would have it
        status: int | None = None
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGABRT)  # upon which Python prints where it is
                process.wait(PATIENCE)
        finally:  # its children too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver outlives it
                process.wait(PATIENCE)
        output.seek(0)
        return status, output.read()


def left_out(stage: Stage, left: float) -> str:
    """Why a stage cannot run while the budget has so many seconds left; empty if it can."""
    if isinstance(stage.command, str):
        return stage.command
    if left >= stage.limit:
        return ""
    text = f"it may take {stage.limit} s, and the budget has {max(left, 0):.0f} s left"
    return f"{text}: {stage.remedy}" if stage.remedy else text


def status_text(status: int) -> str:
    """How a command ended that failed."""
    if status < 0:
        with contextlib.suppress(ValueError):  # of a signal without a name
            return f"by {signal.Signals(-status).name}"
    return f"with status {status}"


def report(
    stages: Sequence[Stage], budget: float, out: Path, run: Run = run, clock: Callable[[], float] = monotonic
) -> bool:
    """Run the stages, write the report after each of them, and return whether none failed."""
    start, verdicts, details, passed = clock(), [f"cvops on a GPU, {datetime.date.today()}\n"], [], True
    for stage in stages:  # in time to install what is missing
        if reason := left_out(stage, budget):
            print(f"{stage.name:12}will be left out: {reason}", flush=True)
    for stage in stages:
        left = budget - (clock() - start)
        if isinstance(stage.command, str) or left < stage.limit:
            verdict = f"left out: {left_out(stage, left)}"
        else:
            begin = clock()
            status, output = run(stage.command, left if stage.open_ended else stage.limit)
            ended = f"after {clock() - begin:.0f} s"
            if status is None:
                verdict = f"stopped {ended}, as the budget ends" if stage.open_ended else f"FAILED: stopped {ended}"
            else:
                verdict = f"FAILED {status_text(status)} {ended}" if status else f"passed {ended}"
            details.append(f"\n==== {stage.name}: {verdict}\n{' '.join(stage.command)}\n\n{output}")
        passed = passed and not verdict.startswith("FAILED")
        verdicts.append(f"{stage.name:12}{verdict}")
        print(verdicts[-1], flush=True)
        out.write_text("\n".join([*verdicts, *details]), encoding="utf-8")
    return passed


# ------------------------------------------------------------------------------------------------------------ checks

counts: Counter[str] = Counter()


@contextlib.contextmanager
def check(name: str) -> Iterator[None]:
    """One check: an exception fails it, and the next one goes on, as long as the CUDA context lives."""
    begin = perf_counter()
    try:
        yield
    except Exception:
        counts["failed"] += 1
        print(f"FAIL  {name}\n{traceback.format_exc()}")
        if cupy := sys.modules.get("cupy"):
            try:
                cupy.cuda.runtime.deviceSynchronize()
            except Exception as error:
                print(f"The CUDA context is lost: {error}")
                raise SystemExit(1) from error
        if counts["failed"] >= MOST_FAILURES:
            raise SystemExit(f"{MOST_FAILURES} failures are enough") from None
    else:
        counts["passed"] += 1
        print(f"ok    {name}  {perf_counter() - begin:.2f} s")


class Library(NamedTuple):
    """How arrays of a library are made from NumPy's, and come back."""

    name: str
    array: Callable[[Array], Any]  # of what lies in C order
    transpose: Callable[[Any, list[int]], Any]
    to_numpy: Callable[[Any], Array]

    def arrays(self, case: Case) -> dict[str, Any]:
        """The arguments of a case, in the same order in memory."""
        return {name: self._laid_out(array) for name, array in case.arrays.items()}

    def _laid_out(self, array: Array) -> Any:
        axes = np.argsort([-abs(stride) for stride in array.strides], kind="stable")
        return self.transpose(self.array(np.ascontiguousarray(array.transpose(axes))), np.argsort(axes).tolist())

    def back(self, result: Any) -> Any:
        """A result, or several of them, on the host."""
        if isinstance(result, dict):
            return {name: self.back(each) for name, each in result.items()}
        if isinstance(result, list | tuple):
            return tuple(map(self.back, result))
        return result if result is None else self.to_numpy(result)


def libraries() -> list[Library]:
    """CuPy, and torch with tensors on the GPU, whose convolutions are as exact as what they are compared with."""
    cupy, torch = load("cupy"), load("torch")
    torch.backends.cudnn.allow_tf32 = False

    def tensor(array: Array) -> Any:
        if array.dtype.name != "bfloat16":
            return torch.from_numpy(array).cuda()
        return torch.from_numpy(array.view(np.int16)).cuda().view(torch.bfloat16)

    def to_numpy(tensor: Any) -> Array:
        if tensor.dtype != torch.bfloat16:
            return tensor.cpu().numpy()  # type: ignore[no-any-return]
        return tensor.view(torch.int16).cpu().numpy().view(load("ml_dtypes").bfloat16)  # type: ignore[no-any-return]

    return [
        Library("cupy", cupy.asarray, cupy.transpose, cupy.asnumpy),
        Library("torch-cuda", tensor, torch.permute, to_numpy),
    ]


def compared(of: Sequence[Library], some: Iterator[Case]) -> None:
    """Compare what each library gets with the answers."""
    for case in some:
        for library in of:
            with check(f"{case.name}, {library.name}"):
                require_close(library.back(case.call(**library.arrays(case))), case.want())


def dtypes() -> list[str]:
    """Those that can be made here."""
    if find_spec("ml_dtypes"):
        return DTYPES
    print("bfloat16 is left out: ml_dtypes is not installed")
    return DTYPES[:3]


# --------------------------------------------------------------------------------------------------- what stages do


def machine() -> None:
    """The GPU, the driver, the versions, the commit."""
    from . import environment

    for command in (
        ["git", "log", "-1", "--format=commit %H of %ci"], ["git", "status", "--short"],
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,mig.mode.current", "--format=csv"],
    ):  # fmt: skip
        with contextlib.suppress(OSError):
            subprocess.run(command, cwd=ROOT, check=False)
    with check("the GPU works"):
        cupy, torch = load("cupy"), load("torch")
        print(json.dumps(environment.describe() | gpu.describe(), indent=1))
        print("compute capability", cupy.cuda.Device().compute_capability, "NVRTC", cupy.cuda.nvrtc.getVersion())
        assert int(cupy.arange(5).sum()) == int(torch.arange(5, device="cuda").sum()) == 10


def smoke() -> None:
    """Every operator and dtype against slow loops."""
    compared(libraries(), cases(FULL, dtypes()))


def small() -> None:
    """The same on few and small arrays, for the tools of compute-sanitizer."""
    compared(libraries()[:1], cases(SMALL, ["float32", "float16"]))


def capture() -> None:
    """Whether a CUDA graph of each call gives, replayed on the inputs, the bits of the call itself."""
    for case in cases(SMALL, ["float32", "float16"]):
        for library, captured in zip(libraries(), (captured_by_cupy, captured_by_torch), strict=True):
            if case.captured:
                with check(f"captured by {library.name}: {case.name}"):
                    arrays = library.arrays(case)
                    replayed(library, case, arrays, captured(partial(case.call, **arrays)))


# A call, made once before -> (what replays its graph, what it returned while it was captured).
Captured = tuple[Callable[[], Any], Any]


def replayed(library: Library, case: Case, arrays: dict[str, Any], captured: Captured) -> None:
    """Raise unless the graph reads its inputs anew each time that it runs."""
    replay, result = captured
    synchronize = load("cupy").cuda.runtime.deviceSynchronize
    want, before = library.back(case.call(**arrays)), library.arrays(case)
    for source in ({name: array * 0 for name, array in arrays.items()}, before, before):
        for name, array in arrays.items():
            array[...] = source[name]
        synchronize()
        replay()
        synchronize()
    for got, expected in zip(flat(library.back(result)), flat(want), strict=True):
        assert got is expected is None or got.tobytes() == expected.tobytes(), "the replay gives other bits"


def flat(result: Any) -> list[Any]:
    """The arrays of a result."""
    result = list(result.values()) if isinstance(result, dict) else result
    return list(result) if isinstance(result, list | tuple) else [result]


def captured_by_cupy(call: Callable[[], Any]) -> Captured:
    """By capture of a stream of CuPy."""
    cupy = load("cupy")
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)  # what a graph knows serves nobody else
    cupy.cuda.runtime.deviceSynchronize()
    with cupy.cuda.using_allocator(pool.malloc), stream:
        call()
        stream.synchronize()
        stream.begin_capture()
        try:
            result = call()
        finally:
            graph = stream.end_capture()

    def replay(pool: Any = pool) -> None:  # which lives as long as the function
        graph.launch(stream)

    return replay, result


def captured_by_torch(call: Callable[[], Any]) -> Captured:
    """By torch.cuda.graph."""
    torch = load("torch")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph.replay, result


def torch_stage() -> None:
    """What only torch has: record_stream, and torch.compile with CUDA graphs."""
    torch, ops = load("torch"), load("cvops.torch")
    case = next(case for case in cases(FULL, ["float32"]) if case.name.startswith("roi_align, (7, 7)"))
    given = libraries()[1].arrays(case)
    like = case.call(**given)
    with check("the memory of a plain tensor is handed out at once without record_stream: the next checks can fail"):
        assert handed_out_early(like.clone, record=False)
    with check("and not with it"):
        assert not handed_out_early(like.clone, record=True)
    with check("record_stream keeps the memory of a result of cvops"):
        assert not handed_out_early(lambda: case.call(**given), record=True)

    deform = next(case for case in cases(SMALL, ["float32"]) if case.name.startswith("deform_conv2d, 16 channels"))
    deformed = libraries()[1].arrays(deform)

    def model(maps: Any, boxes: Any, input: Any, offset: Any, weight: Any) -> Any:
        pooled = ops.roi_align(maps * 2, boxes, 7, 0.5, 2)
        return pooled.nan_to_num().sum() + ops.deform_conv2d(input, offset, weight, padding=1).sum()

    with check("torch.compile(mode='reduce-overhead') of roi_align and deform_conv2d"), torch.no_grad():
        arguments = [*given.values(), *(deformed[name] for name in ("input", "offset", "weight"))]
        compiled = torch.compile(model, mode="reduce-overhead")
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(*arguments).item()
        want = model(*arguments).item()
        assert abs(got - want) <= 1e-3 * max(1, abs(want)), f"{got}, not {want}"


def handed_out_early(make: Callable[[], Any], record: bool) -> bool:
    """Whether memory of what `make` returns serves another tensor while a stream that reads it is still at work.

    The first of two rounds makes CUDA load all that the second one runs: loading waits for the device, so that the
    stream would have ended before anything is asked.
    """
    torch = load("torch")
    side, early, asleep = torch.cuda.Stream(), False, False
    kept = [make() for _ in range(20)]  # by torch, once freed: it need not ask CUDA for more, which may wait too
    del kept
    for cycles in (1, LONG):
        result = make()
        begin, end = result.data_ptr(), result.data_ptr() + result.nbytes
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(cycles)
            result.sum()
        if record:
            result.record_stream(side)
        shape, dtype = result.shape, result.dtype
        del result
        probes = [torch.empty(shape, dtype=dtype, device="cuda") for _ in range(16)]
        early = any(begin < probe.data_ptr() + probe.nbytes and probe.data_ptr() < end for probe in probes)
        asleep = not side.query()
        del probes
        torch.cuda.synchronize()
    assert asleep, "the other stream had ended: this says nothing"
    return early


def host() -> None:
    """Microseconds of the host for a call of small arrays, the device not waited for."""
    print(
        f"{'microseconds of the host per call':55}" + "".join(f"{n:>14}" for n in ("cupy", "torch-cuda", "torchvision"))
    )
    both = libraries()
    for case in cases(SMALL._replace(boxes=(31, 1500), odd_rois=False), ["float32"]):
        if case.captured:  # the others wait
            with check(case.name):
                sides = [(library, case.call) for library in both] + [(both[1], case.peer())]
                times = [microseconds(call, library.arrays(case)) if call else np.nan for library, call in sides]
                print(f"{case.name:55}" + "".join(f"{time:14.1f}" for time in times))


def microseconds(call: Callable[..., Any], arrays: dict[str, Any]) -> float:
    """The median of some timings, after calls that are not timed."""
    times = [gpu.host_seconds(lambda: call(**arrays), 16) / 16 for _ in range(13)]
    return 1e6 * statistics.median(times[4:])


OWN = {
    "machine": machine, "smoke": smoke, "small": small, "capture": capture, "torch": torch_stage, "host": host,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------ command line


def main() -> None:
    all_stages = stages()
    names = [stage.name for stage in all_stages]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_day", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("stages", nargs="*", metavar="stage", help=f"any of: {', '.join(names)} (default: all)")
    add("--budget", type=float, default=480, metavar="SECONDS", help="for all stages together (default: 480)")
    add("--out", type=Path, default=Path("gpu-report.txt"), help="file of the report (default: gpu-report.txt)")
    add("--stage", choices=OWN, help="run this one here, and print what it says")
    options = parser.parse_args()
    if unknown := set(options.stages) - set(names):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    if missing := gpu.missing():
        parser.exit(2, f"{parser.prog}: error: this needs a GPU, CuPy, torch and torchvision: {missing}\n")
    if options.stage:
        try:
            with check(f"the stage {options.stage}"):
                OWN[options.stage]()
                load("cupy").cuda.runtime.deviceSynchronize()
        finally:
            print(f"{counts['passed']} passed, {counts['failed']} failed")
        raise SystemExit(bool(counts["failed"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of what crashes or is stopped, which may hold tens of gigabytes
    try:
        options.out.write_text("Nothing has run yet.\n", encoding="utf-8")
    except OSError as error:  # not after the first stage
        parser.error(f"the report cannot be written: {error}")
    chosen = [stage for stage in all_stages if stage.name in options.stages or not options.stages]
    passed = report(chosen, options.budget, options.out)
    print(f"The report is {options.out}.")
    raise SystemExit(not passed)


if __name__ == "__main__":
    main()
