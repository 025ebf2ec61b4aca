"""`python -m cvops`, `import cvops` and the package as a whole."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import cvops
from cvops import __main__, _runtime


def python(*arguments):
    return subprocess.run([sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=120)


def test_info_reports_versions_threads_cache_and_backends():
    done = python("-m", "cvops", "info")
    assert done.returncode == 0, done.stderr
    report = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert cvops.__version__ in report["cvops"]
    assert {"numpy", "numba", "threads", "blas", "cache", "cpu backend", "cuda backend", "torch", "jax"} <= set(report)


@pytest.mark.slow
def test_warmup_from_the_command_line():
    done = python("-m", "cvops", "warmup", "--operators", "nms", "box_iou", "--dtypes", "float32", "float64")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ready after")
    steps = ["nms, float32", "box_iou, float32", "nms, float64", "box_iou, float64"]
    progress = [rf"\[{number}/4\] {step}: \d+\.\d s\n" for number, step in enumerate(steps, start=1)]
    assert re.fullmatch("".join(progress), done.stderr)


def test_warmup_tells_what_it_is_about_to_compile(monkeypatch, capsys):
    told = []
    steps = [_runtime.Step("nms", "float32", lambda: told.append(capsys.readouterr().err))]
    monkeypatch.setattr(_runtime, "warmup_steps", lambda *arguments: steps)
    __main__.main(["warmup"])
    assert told == ["[1/1] nms, float32"]


def test_wrong_warmup_arguments_are_refused_before_any_work(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["warmup", "--dtypes", "float32", "int8"])
    assert "[1/" not in capsys.readouterr().err


def test_without_a_command_the_help_is_printed():
    done = python("-m", "cvops")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == python("-m", "cvops", "--help").stdout
    assert re.search(r"^ +info .*^ +warmup ", done.stdout, re.M | re.S)


@pytest.mark.parametrize("arguments", [["frobnicate"], ["warmup", "--dtypes", "int8"], ["warmup", "--device", "x"]])
def test_wrong_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        __main__.main(arguments)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_without_cupy_info_and_warmup_say_what_to_install(monkeypatch, capsys):
    for name in ("cvops_cuda", "cvops_cuda._device"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    __main__.main(["info"])
    assert "cuda backend      CUDA arrays need CuPy 14.2 or newer: pip install" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        __main__.main(["warmup", "--device", "cuda"])
    assert "CUDA arrays need CuPy 14.2 or newer: pip install" in capsys.readouterr().err


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    text = capsys.readouterr().out
    assert "info" in text
    assert "warmup" in text


def test_import_is_light():
    heavy = "numpy", "numba", "llvmlite", "torch", "jax", "cupy", "importlib.metadata"
    code = f"import sys, cvops; print([name for name in {heavy} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_every_public_name_is_documented_with_an_example():
    for name in cvops.__all__:
        text = inspect.getdoc(getattr(cvops, name))
        assert ">>> " in text, name
        assert "Parameters\n" in text or not inspect.signature(getattr(cvops, name)).parameters, name


MODULES = [module.name for module in pkgutil.walk_packages(cvops.__path__, "cvops.")]


@pytest.mark.parametrize(
    ("name", "package"), [(name, name.split(".")[1]) for name in MODULES if "__main__" not in name]
)
def test_examples_in_docstrings(name, package):  # left out where there is no torch or no jax
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
