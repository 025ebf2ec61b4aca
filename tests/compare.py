"""Comparisons of a result of cvops with the expected values. They raise; they never return a verdict."""

from __future__ import annotations

import math

import numpy as np

from tests.libraries import dtype_in, layout, to_numpy

# Bound of max|got - want| / max(1, max|want|), by dtype.
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "float16": 4e-3, "bfloat16": 4e-3}


def same(got, want, like):
    """Raise unless `got` is an array of the library and device of `like` with dtype, shape and values of `want`."""
    got, want = _of_one_form(got, want, like)
    _require(np.array_equal(got, want, equal_nan=got.dtype.kind == "f"), "values", got, want)


def close(got, want, like):
    """As `same`, but finite values may differ by the tolerance of their dtype."""
    got, want = _of_one_form(got, want, like)
    finite = np.isfinite(want)
    _require(np.array_equal(got[~finite], want[~finite], equal_nan=True), "NaN and inf", got, want)
    if finite.any():
        got64, want64 = got[finite].astype(np.float64), want[finite].astype(np.float64)
        error = np.abs(got64 - want64).max() / max(1, np.abs(want64).max())
        _require(error <= TOLERANCES[got.dtype.name], f"values (error {error})", got, want)


def same_in_parts(monkeypatch, module, name, function, *args, **options):
    """Raise unless results have the same bits when the limit of this name, of what is computed at a time, is small."""
    whole = function(*args, **options)
    for most in (1, 3, 8):
        monkeypatch.setattr(module, name, most)
        got = function(*args, **options)
        _require(got.dtype == whole.dtype and got.shape == whole.shape, "form", got, whole)
        _require(got.tobytes() == whole.tobytes(), f"bits in parts of {most}", got, whole)
    monkeypatch.undo()


def gradient_fits(function, arrays, name, grad, gradient, seed=0):
    """Raise unless `gradient` says how the sum of grad * function(**arrays) changes along lines of the array `name`.

    By central differences, which are exact where the sum is a polynomial of degree 2 along a line.
    """
    random = np.random.default_rng(seed)
    for _ in range(5):
        step = random.uniform(-0.1, 0.1, gradient.shape)
        ends = ({**arrays, name: arrays[name] + sign * step} for sign in (1, -1))
        above, below = (np.vdot(grad, function(**end)) for end in ends)
        got, want = np.vdot(gradient, step), (above - below) / 2
        _require(math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-9), f"changes by `{name}`", got, want)


def _of_one_form(got, want, like):
    """Both as NumPy arrays, `want` in the dtype that the library of `like` has for its own."""
    library = np.ndarray if isinstance(like, np.ndarray) else type(like)
    _require(type(got) is library, "library", type(got), library)
    _require(got.__dlpack_device__() == like.__dlpack_device__(), "device", got.__dlpack_device__(), like)
    values, dtype = to_numpy(got), dtype_in(like, want.dtype)
    _require(values.dtype == dtype, "dtype", values.dtype, dtype)
    _require(values.shape == want.shape, "shape", values.shape, want.shape)
    address, contiguous = layout(got)
    aligned = values.size == 0 or address % 64 == 0
    _require(contiguous and aligned, "layout", (address, contiguous), "C-contiguous from a multiple of 64 bytes")
    return values, want.astype(dtype)


def _require(condition, what, got, want):
    if not condition:
        raise AssertionError(f"{what} differ\n got: {got!r}\nwant: {want!r}")
