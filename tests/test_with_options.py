"""The classes that are an operator with its options are values, as frozen dataclasses are."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import cvops

MADE = {
    "RoIAlign": (
        lambda: cvops.RoIAlign(7, 0.25, sampling_ratio=2),
        "(output_size=7, spatial_scale=0.25, sampling_ratio=2, aligned=False)",
    ),
    "RoIPool": (lambda: cvops.RoIPool((7, 5), spatial_scale=1), "(output_size=(7, 5), spatial_scale=1)"),
    "PSRoIAlign": (lambda: cvops.PSRoIAlign(7, 0.5, -1), "(output_size=7, spatial_scale=0.5, sampling_ratio=-1)"),
    "PSRoIPool": (lambda: cvops.PSRoIPool(7, 0.5), "(output_size=7, spatial_scale=0.5)"),
    "MultiScaleRoIAlign": (
        lambda: cvops.MultiScaleRoIAlign(("a", "b"), 7, 2, scales=(1, 0.5)),
        "(featmap_names=('a', 'b'), output_size=(7, 7), sampling_ratio=2, scales=(1, 0.5))",
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_operators_with_options_are_values(name):
    make, options = MADE[name]
    made = make()
    assert repr(made) == name + options
    for same in (make(), copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert same == made
        assert hash(same) == hash(made)
        assert repr(same) == repr(made)
    assert made != vars(made)
    for option, value in vars(made).items():
        other = type(made)(**{**vars(made), option: 3})
        assert other != made
        with pytest.raises(AttributeError, match=option):
            setattr(made, option, 3)
        with pytest.raises(AttributeError, match=option):
            delattr(made, option)
        assert getattr(made, option) == value
    assert list(inspect.signature(type(made)).parameters) == list(vars(made))


def test_those_of_other_classes_differ():
    assert cvops.RoIPool(7, 0.5) != cvops.PSRoIPool(7, 0.5)


@pytest.mark.parametrize(
    "arguments", [{}, {"output_size": 7}, {"output_size": 7, "spatial_scale": 1, "scale": 2}], ids=str
)
def test_options_are_those_of_the_signature(arguments):
    with pytest.raises(TypeError):
        cvops.RoIPool(**arguments)


def test_import_is_lean():
    """What these modules offer is not worth a tenth of the time that importing cvops takes.

    Python 3.14 and later load some of them with `logging`, and with a record whose types are strings.
    """
    code = """
import logging, sys, typing
typing.NamedTuple("Record", [("width", "int")])
before = set(sys.modules)
import cvops
print([name for name in sys.argv[1:] if name in sys.modules and name not in before])
"""
    dear = ["ast", "dataclasses", "decimal", "fractions", "inspect", "numpy", "numba"]
    output = subprocess.run(
        [sys.executable, "-S", "-c", code, *dear], check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == "[]"
