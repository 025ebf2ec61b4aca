"""Compilation: where the machine code is kept, what happens where it cannot be, and what `warmup` does."""

import concurrent.futures
import errno
import importlib
import os
import pathlib
import pickle
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import types

import llvmlite
import numba
import numpy as np
import pytest

import cvops
from cvops import _cpu, _warmup
from cvops._cpu import _jit, _nms_few
from tests import data
from tests.strategies import few

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
        timeout=600,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_without_a_writable_cache_folder_calls_work_and_warn_once(tmp_path):
    shutil.copytree(ROOT, tmp_path / "cvops", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path / "cvops", tmp_path / "cvops" / "_cpu"):
        (folder / "__pycache__").touch()  # a file of that name: not even root can write into it
    printed = run(CALLS, tmp_path, HOME="/dev/null", XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="/dev/null/no")
    assert printed[:3] == ["[2, 1]", "[1.0, 1.0, 0.0]", "1"]
    assert printed[3].startswith("RuntimeWarning")
    assert "NUMBA_CACHE_DIR" in printed[3]


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    assert run(CALLS, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[2] == "0"
    machine_code = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")}
    assert machine_code
    assert run(CALLS, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[2] == "0"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.nb?")} == machine_code


@pytest.mark.slow
def test_a_second_process_imports_nothing_that_compiles(tmp_path):
    code = CALLS + "import sys; print('numba.np.arraymath' in sys.modules)"  # with it comes SciPy
    assert [run(code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[-1] for _ in range(2)] == ["True", "False"]


# ------------------------------------------------------------------------------------------------- the cache on disk


def add(a, b):
    return a + b


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder for the cache that has the machine code of `add` for integers already."""
    monkeypatch.setattr(_jit, "_folders", lambda: ([str(tmp_path)], True))
    monkeypatch.setattr(_jit, "_warned", False)
    assert sums() == 0
    (entry,) = tmp_path.iterdir()
    assert entry.suffix == ".nbc"
    return tmp_path


def sums(*more):
    """How many of the sums, which are always right, a new function took from the cache."""
    kernel = _jit.jit(add)
    for a, b in ((1, 2), *more):
        assert kernel(a, b) == a + b
    hits = kernel.stats.cache_hits.values()
    return sum(hits)


def origin_of(entry):
    """What the data in the file must be of."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_jit, "_read", lambda path, origin: seen.append((os.path.basename(path), origin)))
        patch.setattr(_jit, "_write", lambda *content: None)
        sums()
    ((name, origin),) = seen
    assert name == entry.name
    return origin


def flip(entry, place):
    content = bytearray(entry.read_bytes())
    content[place] ^= 4
    entry.write_bytes(content)


def become_a_folder(entry):
    entry.unlink()
    entry.mkdir()
    (entry / "something").touch()


class Unpicklable:
    """Cannot be made from a pickle."""

    def __reduce__(self):
        return eval, ("1 / 0",)


DAMAGES = {
    "empty": lambda entry: entry.write_bytes(b""),
    "a byte": lambda entry: entry.write_bytes(b"c"),
    "half": lambda entry: entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2]),
    "without its last byte": lambda entry: entry.write_bytes(entry.read_bytes()[:-1]),
    "with a byte more": lambda entry: entry.write_bytes(entry.read_bytes() + b"."),
    "garbage": lambda entry: entry.write_bytes(np.random.default_rng(0).bytes(entry.stat().st_size)),
    "zeros": lambda entry: entry.write_bytes(bytes(entry.stat().st_size)),
    "a bit of the head": lambda entry: flip(entry, 20),
    "a bit of what it is of": lambda entry: flip(entry, 60),
    "a bit of the machine code": lambda entry: flip(entry, -500),
    "a pickle": lambda entry: entry.write_bytes(pickle.dumps({"some": "thing"})),
    "another type": lambda entry: _jit._write(str(entry), origin_of(entry), pickle.dumps(5)),
    "too few parts": lambda entry: _jit._write(str(entry), origin_of(entry), pickle.dumps((1, 2))),
    "no pickle": lambda entry: _jit._write(str(entry), origin_of(entry), b"garbage"),
    "not to be unpickled": lambda entry: _jit._write(str(entry), origin_of(entry), pickle.dumps(Unpicklable())),
    "a folder": become_a_folder,
}


@pytest.mark.parametrize("damage", few(DAMAGES, 4))
def test_a_damaged_entry_costs_a_compilation_and_a_warning(folder, damage, monkeypatch):
    (entry,) = folder.iterdir()
    DAMAGES[damage](entry)
    with pytest.warns(RuntimeWarning, match=re.escape(f"cvops cannot read {entry}")) as caught:
        assert sums() == 0
    assert len(caught) == 1
    monkeypatch.setattr(_jit, "_warned", False)
    if damage == "a folder":
        with pytest.warns(RuntimeWarning, match="cannot read"):
            assert sums() == 0
        assert list(folder.iterdir()) == [entry]  # nothing half-written is left
    else:
        assert sums() == 1  # it has been replaced


def test_an_entry_that_may_not_be_read_costs_a_compilation_and_a_warning(folder, monkeypatch):
    def refuse(path, origin):
        raise PermissionError(path)

    monkeypatch.setattr(_jit, "_read", refuse)
    with pytest.warns(RuntimeWarning, match="cannot read .*PermissionError"):
        assert sums() == 0


def test_what_other_sources_made_is_replaced_in_silence(folder, monkeypatch):
    monkeypatch.setattr(_jit, "_stamp", lambda: "other sources")
    assert sums() == 0
    assert sums() == 1
    assert len(list(folder.iterdir())) == 1


def test_versions_and_signatures_have_entries_of_their_own(folder, monkeypatch):
    assert sums((1.0, 2), (1.0, 2.0)) == 1
    assert sums((1.0, 2), (1.0, 2.0)) == 3
    for module in (numba, llvmlite):
        monkeypatch.setattr(module, "__version__", "0")
        assert sums() == 0
    assert len(list(folder.iterdir())) == 5


def test_other_processors_have_entries_of_their_own(folder, monkeypatch):
    codegen = type(_jit.jit(add).targetctx.codegen())
    monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("other", "processor", ""))
    assert sums() == 0
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), PermissionError("read-only"), MemoryError()])
@pytest.mark.parametrize("step", ["open", "replace"])
def test_what_cannot_be_saved_costs_a_warning(tmp_path, monkeypatch, error, step):
    monkeypatch.setattr(_jit, "_folders", lambda: ([str(tmp_path)], True))
    monkeypatch.setattr(_jit, "_warned", False)

    def fail(*arguments):
        if step == "replace" or "xb" in arguments:
            raise error
        return open(*arguments)

    monkeypatch.setattr(*((_jit, "open") if step == "open" else (os, "replace")), fail, raising=False)
    with pytest.warns(RuntimeWarning, match="cvops cannot save") as caught:
        assert sums((1.0, 2)) == 0
    assert len(caught) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_costs_a_warning(folder):
    shutil.rmtree(folder)
    with pytest.warns(RuntimeWarning, match="cannot save"):
        assert sums() == 0


def test_a_filled_folder_that_cannot_be_written_is_used(folder, monkeypatch):
    monkeypatch.setattr(_jit, "_folders", lambda: ([str(folder)], False))
    assert sums() == 1
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):
        assert sums((1.0, 2)) == 1


def test_folders_are_read_up_to_the_first_that_can_be_written(monkeypatch, tmp_path):
    first, last = tmp_path / "first", tmp_path / "last"
    sealed = []

    def temporary_file(dir):
        if dir.startswith(str(first)) and sealed:
            raise PermissionError(dir)
        return tempfile.NamedTemporaryFile(dir=dir)

    monkeypatch.setattr(_jit, "tempfile", types.SimpleNamespace(TemporaryFile=temporary_file))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(first))
    monkeypatch.setattr(_jit, "AppDirs", lambda *names: types.SimpleNamespace(user_cache_dir=str(last)))
    monkeypatch.setattr(_jit, "_warned", False)
    folders = _jit._folders.__wrapped__
    monkeypatch.setattr(_jit, "_folders", folders)
    assert [pathlib.Path(folder).parent for folder in folders()[0]] == [first]
    assert sums() == 0
    sealed.append(True)
    monkeypatch.setattr(_jit, "__file__", str(tmp_path / "file" / "_jit.py"))  # whose __pycache__ cannot be made
    (tmp_path / "file").touch()
    assert [pathlib.Path(folder).parent for folder in folders()[0]][-1] == last
    assert folders()[1]


def test_writers_at_once_leave_whole_entries(tmp_path):
    entry = str(tmp_path / "entry")
    data = [bytes([i]) * 100_000 for i in range(4)]
    _jit._write(entry, b"origin", data[0])
    stop = threading.Event()

    def write(mine):
        while not stop.is_set():
            _jit._write(entry, b"origin", mine)

    writers = [threading.Thread(target=write, args=(mine,)) for mine in data]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            assert _jit._read(entry, b"origin") in data
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_processes_that_fill_the_cache_at_once(tmp_path):
    code = """
    import numpy as np, cvops
    assert cvops.box_iou(np.ones((2, 4), "f"), np.ones((2, 4), "f")).shape == (2, 2)
    from cvops._cpu import _boxes
    print(sum(_boxes._pairs.stats.cache_hits.values()))
    """
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(3)]:
            done.result()
    assert run(code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path)) == ["1"]
    assert {file.suffix for file in tmp_path.rglob("*.*")} == {".nbc"}


@pytest.mark.parametrize("file", ["_jit.py", "_simd.py", "_threads.py", "new.py"])
def test_an_edit_of_any_source_of_the_backend_is_noticed(tmp_path, monkeypatch, file):
    shutil.copytree(ROOT / "_cpu", tmp_path / "backend", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_cpu, "__path__", [str(tmp_path / "backend")])
    source = tmp_path / "backend" / file
    monkeypatch.setattr(_jit.pkgutil, "get_data", lambda package, name: (tmp_path / "backend" / name).read_bytes())
    before = _jit._stamp.__wrapped__()
    assert before == _jit._stamp()  # as installed: of the contents, whatever the dates of the files
    with source.open("a") as opened:
        opened.write("\n")
    assert _jit._stamp.__wrapped__() != before


CHANGES_OF_NUMBA = {
    "none": ("", ".nbc"),
    "no class of caches": ("del numba.core.caching._Cache", ".nbi"),
    "one method more": (
        "import abc; cache = numba.core.caching._Cache; cache.brew = abc.abstractmethod(lambda self: 0);"
        " abc.update_abstractmethods(cache); [setattr(other, 'brew', print) or abc.update_abstractmethods(other)"
        " for other in cache.__subclasses__()]; abc.update_abstractmethods(numba.core.caching.FunctionCache)",
        ".nbi",
    ),
    "another entry for C code": (
        "from numba.core.dispatcher import _DispatcherBase as base;"
        " base._compile_for_arguments = base._compile_for_args; del base._compile_for_args; base.__getattr__ ="
        " lambda self, name: self._compile_for_arguments if name == '_compile_for_args' else object.__getattribute__("
        "self, name)",
        ".nbi",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", few(CHANGES_OF_NUMBA, 4))
def test_where_numba_is_not_as_known_its_own_cache_serves(tmp_path, change):
    edit, suffix = CHANGES_OF_NUMBA[change]
    code = f"""
    import numba, numba.core.caching
    {edit}
    import numpy as np, cvops
    assert cvops.box_iou(np.ones((2, 4), "f"), np.ones((2, 4), "f")).shape == (2, 2)
    from cvops._cpu import _jit
    print(_jit.cache_folder())
    """
    (printed,) = run(code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))
    assert pathlib.Path(printed).parent == tmp_path
    assert suffix in {file.suffix for file in tmp_path.rglob("*.*")}


def test_without_a_folder_for_the_cache_of_numba_it_compiles_and_warns(monkeypatch):
    def refuse(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function")
        return function

    monkeypatch.setattr(numba, "njit", refuse)
    monkeypatch.setattr(_jit, "_KNOWS_NUMBA", False)
    monkeypatch.setattr(_jit, "_warned", False)
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR"):
        assert sums.__globals__["_jit"].jit(add) is add
    assert _jit.cache_folder() is None


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users on this system")
def test_files_of_the_cache_may_be_read_by_other_users(folder):
    (entry,) = folder.iterdir()
    mask = os.umask(0)
    os.umask(mask)
    assert entry.stat().st_mode & 0o777 == 0o666 & ~mask


# ------------------------------------------------------------------------------------------- without a compiler

IN_PYTHON = """
import sys, numpy as np, cvops
generator = np.random.default_rng(0)
answers = {}
def answer(name, call):
    try:
        got = call()
        answers[name] = [part.tolist() for part in (got if isinstance(got, tuple) else (got,))]
    except RuntimeError as error:
        answers[name] = str(error)
for dtype in DTYPES:
    def array(*shape):
        return generator.uniform(0, 9, shape).astype(dtype)
    corners = array(60, 2)
    boxes = np.concatenate([corners, corners + array(60, 2) - 1], 1)
    boxes[7], boxes[8, 2], boxes[9] = np.nan, np.inf, 3e38
    rois = np.concatenate([np.arange(60)[:, None] % 2, boxes], 1).astype(dtype)[20:]
    for threshold in (0, 0.3, 0.7):
        answer(f"nms {threshold} {dtype}", lambda: cvops.nms(boxes, array(60), threshold))
        of_classes = lambda: cvops.batched_nms(boxes, array(60), np.arange(60) % 3, threshold)
        answer(f"batched_nms {threshold} {dtype}", of_classes)
    answer(f"multiclass_nms {dtype}", lambda: cvops.multiclass_nms(boxes[None], array(1, 60, 3), 0.5))
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        answer(f"{name} {dtype}", lambda: getattr(cvops, name)(boxes, boxes))
    for channels in (4, 32):
        maps, grad = array(2, channels, 12, 12), array(40, channels, 2, 2)
        for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
            answer(f"{name} {channels} {dtype}", lambda: getattr(cvops, name)(maps, rois, 2))
            if name != "roi_pool":
                backward = getattr(cvops, name + "_backward")
                shape = maps.shape if name == "roi_align" else (2, channels * 4, 12, 12)
                answer(f"{name}_backward {channels} {dtype}", lambda: backward(grad, rois, shape))
    answer(f"deform_conv2d {dtype}", lambda: cvops.deform_conv2d(maps, array(2, 18, 10, 10), array(8, 32, 3, 3)))
print(repr(answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_without_a_compiler_results_are_right_or_an_error_names_the_variable(dtype):
    code = IN_PYTHON.replace("DTYPES", repr([dtype]))
    compiled, interpreted = (
        eval(run(code, ROOT.parent, NUMBA_DISABLE_JIT=value)[0], {"nan": np.nan, "inf": np.inf}) for value in "01"
    )
    refused = set()
    for name, wanted in compiled.items():
        if isinstance(interpreted[name], str):
            assert "NUMBA_DISABLE_JIT is set" in interpreted[name], name
            refused.add(name.split()[0])
        else:
            for got, want in zip(interpreted[name], wanted, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)
    assert not refused & {"nms", "box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"}
    assert refused


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
    before = len(_nms_few.nms_of_few.signatures)
    boxes.flags.writeable = scores.flags.writeable = False
    cvops.nms(boxes, scores, 0.5)
    assert len(_nms_few.nms_of_few.signatures) == before == 1


def test_a_kernel_of_one_signature_refuses_other_dimensions_without_a_compiler_too(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    kernel = _jit.jit_for(numba.types.Array(numba.types.float32, 1, "A", readonly=True), numba.types.float64)(add)
    assert kernel(np.ones(1, np.float32), 2.0) == [3.0]
    for wrong in ((np.ones((1, 1), np.float32), 2.0), (np.ones(1, np.float32), np.ones(1))):
        with pytest.raises(TypeError):
            kernel(*wrong)


def test_a_kernel_of_one_signature_refuses_other_dimensions_before_it_is_compiled():
    kernel = _jit.jit_for(numba.types.Array(numba.types.float32, 1, "A", readonly=True), numba.types.float64)(add)
    with pytest.raises(TypeError):
        kernel(np.ones((1, 1), np.float32), 2.0)
    assert not kernel.signatures


def test_a_kernel_of_one_signature_takes_tuples_without_a_compiler_too(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    pair = numba.types.UniTuple(numba.types.int64, 2)
    assert _jit.jit_for(pair, numba.types.int64)(lambda strides, k: strides[k])((3, 4), 1) == 4


def test_what_a_kernel_calls_is_compiled_without_an_entry_for_python(folder):
    """And Python finds one when it calls the function itself, in this process and from the cache."""

    def doubled(a):
        return add_jitted(a, a)

    for _ in range(2):
        add_jitted = _jit.jit(add)
        kernel = _jit.jit(doubled)
        assert kernel(3.0) == 6.0
        assert (len(add_jitted.signatures), len(add_jitted.inner.signatures)) == (0, 1)
        assert add_jitted(3.0, 4.0) == 7.0
        assert (len(add_jitted.signatures), len(add_jitted.inner.signatures)) == (1, 1)
    assert sum(add_jitted.stats.cache_hits.values()) == 1
    assert len(list(folder.glob("*add-*"))) == 3  # of integers, and two of floats


@pytest.mark.parametrize("size", [0, 10, 300])
def test_results_of_kernels_own_their_memory_alone(size):
    """Nothing of the call keeps it, and there is little more of it than the result needs."""
    boxes, scores, idxs = data.clustered(size)
    for keep in (cvops.nms(boxes, scores, 0.5), cvops.batched_nms(boxes, scores, idxs, 0.5)):
        assert keep.base.refcount == 1
        assert memoryview(keep.base).nbytes <= keep.nbytes + 500


def test_threads_call_a_kernel_of_one_signature_for_the_first_time_at_once():
    """All but one find that it is compiled when their turn comes."""
    kernel = _jit.jit_for(numba.types.Array(numba.types.float32, 1, "C", readonly=True))(lambda array: array[0] + 1)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(kernel(np.ones(1, np.float32)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [2] * 8


def test_kernels_cannot_write_into_inputs():
    cvops.warmup(dtypes=("float32", "float64"))
    arrays = [array for array in _nms_few.nms_of_few.signatures[0] if isinstance(array, numba.types.Array)]
    assert [array.mutable for array in arrays] == [False, False]  # boxes, scores


def test_no_kernel_uses_fast_math_or_openmp():
    for name, kernel in kernels().items():
        assert kernel.targetoptions["fastmath"] in (False, {"contract"}), name
        assert kernel.targetoptions["nogil"], name
        assert not kernel.targetoptions.get("parallel"), name
        assert kernel.targetoptions["error_model"] == "numpy", name
    assert len(kernels()) > 30


def test_decisions_are_never_contracted():
    """The kernels of nms and multiclass_nms, of box measures and of the tables that say what RoI operators read."""
    deciding = {
        name: kernel
        for name, kernel in kernels().items()
        if name.startswith(("_nms", "_multiclass", "_rank.", "_boxes.", "_roi_tables."))
    }
    assert len(deciding) > 10
    for name, kernel in deciding.items():
        assert not kernel.targetoptions["fastmath"], name


@pytest.mark.slow
def test_warmup_compiles_all_that_later_calls_use(tmp_path):
    code = """
    import numpy as np, cvops
    from cvops._cpu import _nms_all, _nms_few, _nms_grid, _nms_hash, _rank
    cvops.warmup(operators=["nms", "batched_nms"])
    def compilations():
        modules = _nms_all, _nms_few, _nms_grid, _nms_hash, _rank
        values = [value for module in modules for value in vars(module).values()]
        kernels = [value for value in values if hasattr(value, "signatures")]
        return sum(len(kernel.signatures) + len(kernel.inner.signatures) for kernel in kernels)
    before = compilations()
    generator = np.random.default_rng(0)
    for length in (0, 5, 500, 9000):
        boxes = generator.uniform(0, 100, (length, 4)).astype(np.float32)
        scores = generator.uniform(size=length).astype(np.float32)
        cvops.nms(boxes, scores, 0.5, score_threshold=0.1, max_output=10)
        cvops.batched_nms(boxes, scores, np.arange(length) % 3, 0.05)
        cvops.batched_nms(boxes, scores, np.zeros(length, np.int8), 0.6)
        cvops.nms(boxes, scores, 0.2)
    print(before, compilations())
    """
    before, after = run(code, ROOT.parent, NUMBA_CACHE_DIR=str(tmp_path))[-1].split()
    assert before == after
    assert int(before) > 10


@pytest.mark.slow
def test_warmup_reaches_what_ordinary_calls_use():
    code = """
    import cvops
    from tests.operators import OPERATORS
    from tests.test_jit import kernels

    def compiled():
        return {
            (name, signature)
            for name, kernel in kernels().items()
            for signature in kernel.signatures + kernel.inner.signatures
        }

    cvops.warmup()
    before = compiled()
    for name, row in OPERATORS.items():
        getattr(cvops, name)(*row.args, **row.options)
    print(len(before), *sorted({name for name, _ in compiled() - before}))
    """
    count, *missing = run(code, ROOT.parent)[-1].split()
    assert missing == []
    assert int(count) > 30


def test_every_operator_of_the_backend_can_be_warmed_up():
    helpers = {"asarray", "copy", "current_gpu", "empty", "ignore_fp_errors", "rois_of_images", "to_host", "xp"}
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
