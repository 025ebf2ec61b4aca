"""Types of public signatures: what checkers find in calls, the right ones and the wrong ones.

The ordinary call of each operator is that of its row in operators.py; tests/typing holds what is special.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import typing

import numpy as np
import pytest

import cvops
from tests.operators import OPERATORS, WITHOUT_ARRAYS, converted

ROOT = pathlib.Path(__file__).parent.parent
CALLS = sorted(path.stem.removeprefix("of_") for path in ROOT.glob("tests/typing/of_*.py"))
CHECKERS = {
    # What cvops itself holds is left to the configuration of mypy in pyproject.toml.
    "mypy": ["--strict", "--config-file=", "--follow-imports=silent", "--cache-dir=.mypy_cache/calls"],
    "pyright": [f"--pythonpath={sys.executable}"],
}


# Library -> how its arrays are imported and called.
ARRAYS = {
    "numpy": ("import numpy as np\nfrom numpy.typing import NDArray", None),
    "jax": ("import cvops.jax\nfrom jax import Array", "Array"),
    "torch": ("import cvops.torch\nfrom torch import Tensor", "Tensor"),
}


@pytest.mark.parametrize("library", CALLS)
@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers_find_the_types_and_the_mistakes(checker, library, tmp_path):
    files = [ROOT / f"tests/typing/of_{library}.py"]
    if library in ARRAYS:
        files.append(tmp_path / f"ordinary_calls_of_{library}.py")
        files[1].write_text("\n".join(ordinary_calls(library)))
    command = [sys.executable, "-m", checker, *CHECKERS[checker], *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"MYPYPATH": "."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def ordinary_calls(library):
    """Lines of a module with the call of each row, on arrays of the library."""
    imports, array = ARRAYS[library]
    yield f"# pyright: strict\nfrom typing import assert_type\nimport cvops\n{imports}"
    for name, row in OPERATORS.items():
        for dtype in ("float32", "float64") if array is None else ("float32",):
            args = [converted(arg, lambda value: value.astype(dtype) if value.dtype == "f4" else value)  # noqa: B023
                    for arg in row.args]  # fmt: skip
            result = getattr(cvops, name)(*args, **row.options)
            types = [type_of(arg, array) for arg in args]
            yield f"def {name}_{dtype}({', '.join(f'_{i}: {each}' for i, each in enumerate(types) if each)}) -> None:"
            given = [f"_{i}" if types[i] else repr(arg) for i, arg in enumerate(args)]
            given += [f"{option}={value!r}" for option, value in row.options.items()]
            yield checked(f"cvops.{name}", given, result, array)
            if array and library not in row.lacks:
                if library == "jax" and row.ragged:  # which is padded there
                    given, result = [*given, "max_output=9"], (np.ones(1),)
                yield checked(f"cvops.{library}.{name}", given, result, array)


def checked(function, given, result, array):
    """A statement that checks the type of a call whose result is like this one."""
    call = f"{function}({', '.join(given)})"
    if isinstance(result, list | np.ndarray):
        return f"    assert_type({call}, {type_of(result, array)})"
    arrays = f"tuple[{type_of(next(filter(is_array, result)), array)} | None, ...]"  # as wide, whatever may be None
    return f"    _{function.replace('.', '_')}: {arrays} = {call}"


def is_array(value):
    return isinstance(value, np.ndarray)


def type_of(value, array):
    """What to write for the type of an array, or of a list of arrays; "" if it is neither."""
    if isinstance(value, list) and is_array(value[0]):
        return f"list[{type_of(value[0], array)}]"
    if not is_array(value):
        return ""
    return array or f"NDArray[np.{value.dtype.name.replace('bool', 'bool_')}]"


def test_every_public_name_is_called():
    text = (ROOT / "tests/typing/of_numpy.py").read_text()
    called = {name for name in cvops.__all__ if f"cvops.{name}(" in text}
    assert {*cvops.__all__} == called | {*OPERATORS}
    assert called >= WITHOUT_ARRAYS


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
