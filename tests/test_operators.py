"""What holds for every operator: all that the table of operators.py has a row for, in every layer."""

from __future__ import annotations

import ast
import importlib
import pathlib
import re

import numpy as np
import pytest

import cvops
from tests import compare
from tests.libraries import require, to_numpy
from tests.operators import OPERATORS, WITHOUT_ARRAYS, converted

every_operator = pytest.mark.parametrize("name", OPERATORS)


def call(name, convert=np.array):
    """All results of the ordinary call, as a list, and an array that they are like."""
    row = OPERATORS[name]
    args = [converted(value, convert) for value in row.args]
    like = args[0][0] if isinstance(args[0], list) else args[0]
    return listed(getattr(cvops, name)(*args, **row.options)), like


def listed(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def test_every_function_has_a_row():
    functions = {name for name in cvops.__all__ if not isinstance(getattr(cvops, name), type)}
    assert functions == {*OPERATORS, *WITHOUT_ARRAYS}


def test_every_gradient_has_a_row():
    assert {row.gradient for row in OPERATORS.values()} - {""} == {
        name for name in OPERATORS if name.endswith("_backward")
    }


@pytest.mark.parametrize("layer", ["torch", "jax"])
def test_no_layer_forgets_an_operator(layer):
    require(layer)
    adapter = importlib.import_module(f"cvops.{layer}")
    wanted = {name for name, row in OPERATORS.items() if layer not in row.lacks}
    assert wanted <= set(adapter.__all__)


def test_a_default_is_written_once_for_each_framework_that_needs_it():
    """TorchScript reads it in the functions of cvops.torch; schemas and cvops.jax take it from the public functions."""
    written = []
    for path in pathlib.Path(cvops.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                args = node.args
                positional = [*args.posonlyargs, *args.args]
                defaults = dict(zip(reversed(positional), reversed(args.defaults), strict=False))
                defaults |= dict(zip(args.kwonlyargs, args.kw_defaults, strict=True))
                written += [
                    f"{path.name}:{node.name}" for argument, default in defaults.items()
                    if argument.arg == "sampling_ratio" and default is not None and ast.unparse(default) != "..."
                ]  # fmt: skip
            elif isinstance(node, ast.Constant) and re.search(r"\bint sampling_ratio *=", str(node.value)):
                written.append(f"{path.name}: a schema")
    assert 6 <= len(written) <= 9, written


@every_operator
def test_every_library_and_layout(array, name):
    row = OPERATORS[name]
    results, like = call(name, array)
    for got, want in zip(results, listed(row.want(*row.args, **row.options)), strict=True):
        (compare.same if row.indices else compare.close)(got, np.asarray(want), like)


@every_operator
def test_results_do_not_depend_on_threads(threads, name):
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append([to_numpy(result).tobytes() for result in call(name)[0]])
    assert results[0] == results[1] == results[2]


@every_operator
def test_jit_and_vmap(jax, name):
    """As the plain function, in a program of JAX; and for each of two, by jax.vmap."""
    row = OPERATORS[name]
    if "jax" in row.lacks or row.ragged:
        return
    function = getattr(importlib.import_module("cvops.jax"), name)
    leaves, tree = jax.tree.flatten([converted(value, np.array) for value in row.args])
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]

    def of_arrays(*arrays):
        filled = list(leaves)
        for i, array in zip(where, arrays, strict=True):
            filled[i] = array
        return function(*jax.tree.unflatten(tree, filled), **row.options)

    arrays = [leaves[i] for i in where]
    (want,) = call(name)[0]
    close(jax.jit(of_arrays)(*arrays), want)
    twice = jax.vmap(of_arrays)(*(np.stack([array, array]) for array in arrays))
    close(twice, np.stack([want, want]))


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5, atol=1e-5)
