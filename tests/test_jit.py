"""Compilation: where the machine code is kept, what happens where it cannot be, and what `warmup` does."""

import importlib
import os
import pathlib
import pkgutil
import shutil
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest

import cvops
from cvops import _cpu, _warmup
from cvops._cpu import _nms

ROOT = pathlib.Path(cvops.__file__).parent

CALLS = """
import warnings, numpy as np, cvops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    boxes = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    print(cvops.nms(boxes, np.array([1, 2, 3], np.float32), 0.5).tolist())
    print(cvops.box_iou(boxes, boxes)[0].tolist())
print(len(caught))
for warning in caught:
    print(warning.category.__name__, warning.message)
"""


def run(code, folder, **environment):
    """Run `code` in a new interpreter with the package that lies in `folder`; return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_a_writable_cache_folder_calls_work_and_warn_once(tmp_path):
    shutil.copytree(ROOT, tmp_path / "cvops", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path / "cvops", tmp_path / "cvops" / "_cpu"):
        (folder / "__pycache__").touch()  # a file of that name: not even root can write into it
    printed = run(CALLS, tmp_path, HOME="/dev/null", XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="/dev/null/no")
    assert printed[:3] == ["[2, 1]", "[1.0, 1.0, 0.0]", "1"]
    assert printed[3].startswith("RuntimeWarning")
    assert "NUMBA_CACHE_DIR" in printed[3]


def test_a_second_process_compiles_nothing(tmp_path):
    assert run(CALLS, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[2] == "0"
    machine_code = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")}
    assert machine_code
    assert run(CALLS, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[2] == "0"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")} == machine_code


def kernels():
    """Every jitted function of the backend, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(_cpu.__path__):
        for name, value in vars(importlib.import_module(f"cvops._cpu.{module.name}")).items():
            if isinstance(value, numba.core.dispatcher.Dispatcher):
                found[f"{value.__module__.rpartition('.')[2]}.{name}"] = value
    return found


def test_writable_and_readonly_inputs_share_one_compilation():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32)
    scores = np.array([1, 2], np.float32)
    cvops.nms(boxes, scores, 0.5)
    before = len(_nms._nms_few.signatures)
    boxes.flags.writeable = scores.flags.writeable = False
    cvops.nms(boxes, scores, 0.5)
    assert len(_nms._nms_few.signatures) == before == 1


def test_kernels_cannot_write_into_inputs():
    cvops.warmup(dtypes=("float32", "float64"))
    arrays = [array for array in _nms._nms_few.signatures[0] if isinstance(array, numba.types.Array)]
    assert [array.mutable for array in arrays] == [False, False, True]  # boxes, scores; the result


def test_no_kernel_uses_fast_math_or_openmp():
    for name, kernel in kernels().items():
        assert kernel.targetoptions["fastmath"] in (False, {"contract"}), name
        assert kernel.targetoptions["nogil"], name
        assert not kernel.targetoptions.get("parallel"), name
        assert kernel.targetoptions["error_model"] == "numpy", name
    assert len(kernels()) > 30


def test_decisions_are_never_contracted():
    """The kernels of nms, of the box measures and of the tables that say what the RoI operators read."""
    deciding = {
        name: kernel for name, kernel in kernels().items() if name.startswith(("_nms.", "_boxes.", "_roi_tables."))
    }
    assert len(deciding) > 10
    for name, kernel in deciding.items():
        assert not kernel.targetoptions["fastmath"], name


@pytest.mark.slow
def test_warmup_compiles_all_that_later_calls_use(tmp_path):
    code = """
    import numpy as np, cvops
    from cvops._cpu import _nms
    cvops.warmup(operators=["nms", "batched_nms"])
    def compilations():
        return sum(len(value.signatures) for value in vars(_nms).values() if hasattr(value, "signatures"))
    before = compilations()
    generator = np.random.default_rng(0)
    for length in (0, 5, 500, 9000):
        boxes = generator.uniform(0, 100, (length, 4)).astype(np.float32)
        scores = generator.uniform(size=length).astype(np.float32)
        cvops.nms(boxes, scores, 0.5, score_threshold=0.1, max_output=10)
        cvops.batched_nms(boxes, scores, np.arange(length) % 3, 0.05)
        cvops.batched_nms(boxes, scores, np.zeros(length, np.int8), 0.6)
    print(before, compilations())
    """
    before, after = run(code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[-1].split()
    assert before == after
    assert int(before) > 10


def test_every_operator_of_the_backend_can_be_warmed_up():
    helpers = {"asarray", "copy", "current_gpu", "empty", "quiet", "to_host", "xp"}
    by_others = {"multiscale_roi_align", "multiscale_roi_align_backward", "conv2d"}  # roi_align, FeaturePyramidNetwork
    operators = set(_cpu.__all__) - helpers - by_others
    assert operators <= set(_warmup.CALLS)
    assert set(_warmup.CALLS) <= set(cvops.__all__)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"device": "tpu"}, "`device` must be one of cpu, cuda, got 'tpu'"),
        ({"dtypes": ["int8"]}, "`dtypes` must be one of float64, float32, float16, got 'int8'"),
        ({"operators": ["nsm"]}, "`operators` must be one of nms, .*, got 'nsm'"),
    ],
)
def test_warmup_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        cvops.warmup(**arguments)
