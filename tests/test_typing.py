"""Types of public signatures: what checkers find in the calls of tests/typing, the right ones and the wrong ones."""

from __future__ import annotations

import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import typing

import pytest

import cvops

ROOT = pathlib.Path(__file__).parent.parent
CALLS = sorted(path.stem.removeprefix("of_") for path in ROOT.glob("tests/typing/of_*.py"))
CHECKERS = {
    # What cvops itself holds is left to the configuration of mypy in pyproject.toml.
    "mypy": ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir=.mypy_cache/calls"],
    "pyright": [f"--pythonpath={sys.executable}"],
}


@pytest.mark.parametrize("library", CALLS)
@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers_find_the_types_and_the_mistakes(checker, library):
    command = [sys.executable, "-m", checker, *CHECKERS[checker], f"tests/typing/of_{library}.py"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"MYPYPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_called_there():
    text = (ROOT / "tests/typing/of_numpy.py").read_text()
    assert [name for name in cvops.__all__ if f"cvops.{name}(" not in text] == []


def functions_of(module):
    """The public functions, and the methods of public classes that users call."""
    for name in module.__all__:
        public = getattr(module, name)
        if not isinstance(public, type):
            yield name, public
            continue
        for method in ("__init__", "__call__", *vars(public)):
            function = getattr(public, method)
            if inspect.isfunction(function) and (method in ("__init__", "__call__") or not method.startswith("_")):
                yield f"{name}.{method}", function


@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_no_signature_says_any(library):
    for name, function in functions_of(cvops if library == "numpy" else importlib.import_module("cvops.jax")):
        for signature in map(inspect.signature, typing.get_overloads(function) or [function]):
            types = [signature.return_annotation, *(each.annotation for each in signature.parameters.values())]
            types = types[:1] + [kind for kind in types[1:] if kind is not inspect.Parameter.empty]  # but for self
            assert not {"Any", "dict[str, Any]", inspect.Signature.empty} & set(types), (name, str(signature))
