"""Fixtures and the Hypothesis profile of all tests."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import os

import hypothesis
import pytest

import cvops
from tests import host_emulation, libraries
from tests import nvrtc as compilers
from tests.host_emulation import device

# The same examples on every run, so that a failure is a change of the code and not of the dice.
hypothesis.settings.register_profile("cvops", derandomize=True, max_examples=100, deadline=None, database=None)
hypothesis.settings.register_profile("few", parent=hypothesis.settings.get_profile("cvops"), max_examples=25)

# JAX reads these when it first computes. What is tested of it is the CPU, also where it finds a GPU: `cvops.jax` is
# registered there alone. Two devices on the host, for what runs on several.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"

# On a machine with a GPU the suite runs without Numba too: what needs it is skipped.
_WITHOUT_NUMBA = bool({"cupy", "torch-cuda"} & libraries.required()) and importlib.util.find_spec("numba") is None
collect_ignore = ["test_jit.py", "test_targets.py", "test_threads.py"] if _WITHOUT_NUMBA else []
if "torch" in libraries.missing():  # which this module needs to list its tests
    collect_ignore.append("test_torch_unwatched.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if not _WITHOUT_NUMBA or error.name != "numba":
            raise
        pytest.skip("Numba is not installed")


def pytest_sessionstart(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:  # which workers of xdist do not have
        reporter.write_line(
            "All takes about three minutes, less once all is compiled; with the slow tests, -m '', several times that. "
            "A dot is ten tests that passed."
        )
        if missing := ", ".join(sorted(libraries.missing())):
            how = "install what is missing; cuda-emulated takes g++ and CVOPS_REQUIRE=cuda-emulated"
            reporter.write_line(f"Left out are tests that need {missing}: {how}.")


_passed = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus(report, config):
    """A dot for ten tests that passed: thousands of tests are to fit on a screen."""
    status = yield
    if status[0] == "passed" and config.get_verbosity() < 0 and next(_passed) % 10:
        return "passed", "", status[2]
    return status


def pytest_collection_modifyitems(config, items):
    """Leave out the tests that need what is missing: a fixture has its name, or a parameter, alone or in a list."""
    missing = libraries.missing() | ({"emulated"} if "cuda-emulated" in libraries.missing() else set())

    def runs(item):
        needed = set(item.fixturenames)
        for value in item.callspec.params.values() if hasattr(item, "callspec") else []:
            names = value if isinstance(value, list | tuple | set) else [value]
            needed.update(name for name in names if isinstance(name, str))
        return missing.isdisjoint(needed)

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = filter(runs, items)


def pytest_configure(config):
    hypothesis.settings.load_profile("few" if "not slow" in config.getoption("markexpr") else "cvops")
    unknown = libraries.required() - {*libraries.OPTIONAL, *libraries.CONVERTERS, "nvrtc"}
    if unknown:
        raise pytest.UsageError(f"CVOPS_REQUIRE lists {', '.join(sorted(unknown))}, which no test asks for")


@pytest.fixture(scope="session", params=libraries.PRESENT)
def array(request):
    """A converter from a NumPy array to an array of one library; the test runs once for each library."""
    convert = libraries.CONVERTERS[request.param]
    convert([0.0])  # fails where CVOPS_REQUIRE lists a library that is missing
    return convert


@pytest.fixture(scope="session", params=[name for name in libraries.BACKENDS if name in libraries.PRESENT])
def ops(request):
    """The functions of cvops for NumPy arrays; the test runs once for each backend."""
    libraries.CONVERTERS[request.param]([0.0])
    return libraries.Operators(request.param)


def _importing(library):
    return pytest.fixture(scope="session", name=library)(lambda: libraries.require(library))


# The modules of these names. A test that has one of them is left out where that is missing.
torch, torchvision, jax, onnxruntime, openvino, scipy, pandas, ml_dtypes = map(
    _importing, ("torch", "torchvision", "jax", "onnxruntime", "openvino", "scipy", "pandas", "ml_dtypes")
)


@pytest.fixture(scope="session")
def torch_ops(torch):
    """The module `cvops.torch`."""
    return importlib.import_module("cvops.torch")


@pytest.fixture(scope="session", params=compilers.LIBRARIES)
def nvrtc(request):
    """`compile_for` of one version of NVRTC; the test runs once for each version."""
    return functools.partial(compilers.compile_for, request.param)


@pytest.fixture
def threads():
    """`cvops.set_num_threads`, undone after the test."""
    before = cvops.get_num_threads()
    yield cvops.set_num_threads
    cvops.set_num_threads(before)


@pytest.fixture(scope="session")
def emulated():
    """The emulated library's converter."""
    convert = libraries.CONVERTERS["cuda-emulated"]
    convert([0.0])
    return convert


@pytest.fixture
def launches(emulated):
    device.launches.clear()
    return device.launches


@pytest.fixture
def seeds(monkeypatch):
    """Five schedules for every launch."""
    monkeypatch.setattr(device, "seeds", [1, 2, 3, 4, 5])


@pytest.fixture
def small_batches(monkeypatch):
    """nms on CUDA, emulated or not, in small batches, so that a few thousand boxes are several."""
    monkeypatch.setattr(host_emulation.nms_module(), "_BATCH", host_emulation.SMALL_BATCH)
    if importlib.util.find_spec("cupy"):
        monkeypatch.setattr("cvops_cuda._nms._BATCH", host_emulation.SMALL_BATCH)
