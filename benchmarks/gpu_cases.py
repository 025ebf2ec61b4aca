"""Calls of every operator with their answers, for `gpu_day.py`: what a GPU computes is compared with slow loops.

The ordinary call of each operator is that of `tests/operators.py`; written here are the sizes, values and options that
take other ways. The answers are those of `tests/reference*.py`, on NumPy arrays of the same values.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import cvops
from tests.data import Array, clustered, hostile, pyramid_boxes, rois, uniform_scores

from .gpu import load

Arrays = dict[str, Array]
# Bound of max|got - want| / max(1, max|want|), by dtype of the result.
TOLERANCES = {"float64": 1e-9, "float32": 3e-5, "float16": 8e-3, "bfloat16": 2e-2}
_NOT_OF_PEERS = ("padded", "return_argmax")


class Case(NamedTuple):
    """A call, its arrays by the names of the arguments, and its answer."""

    name: str
    call: Callable[..., Any]
    arrays: Arrays
    want: Callable[[], Any]
    captured: bool = True  # whether a CUDA graph can hold it: nothing is read by the host or uploaded

    def peer(self) -> Callable[..., Any] | None:
        """The function of torchvision with this name and these options."""
        if not isinstance(self.call, partial):
            return None
        options = {name: value for name, value in self.call.keywords.items() if name not in _NOT_OF_PEERS}
        function = getattr(load("torchvision").ops, self.call.func.__name__, None)
        return function and partial(function, **options)


class Deformed(NamedTuple):
    """A deformable convolution."""

    images: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    groups: int = 1
    offset_groups: int = 1
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    mask_and_bias: bool = True


class Sizes(NamedTuple):
    """How large the inputs are."""

    boxes: tuple[int, ...]  # of nms: one block, one batch, several, and the edges between them
    hostile: int
    head: tuple[int, int, int]  # images, boxes, classes
    maps: tuple[int, int, int, int]
    sensitive: tuple[int, int, int, int]
    bins: tuple[int, int]  # of `sensitive`
    rois: int
    deformed: tuple[Deformed, ...]
    odd_rois: bool = True  # also empty, inverted, outside, larger than the map, NaN: torchvision may die of them


# As small as reaches every kernel: for tools that slow a GPU down a hundred times.
SMALL = Sizes(
    boxes=(31, 700, 1500, 17500),
    hostile=700,
    head=(2, 60, 5),
    maps=(2, 21, 20, 31),
    sensitive=(2, 30, 13, 21),
    bins=(2, 3),
    rois=24,
    deformed=(
        Deformed(2, 16, 8, (3, 3), (7, 9)),
        Deformed(1, 20, 10, (3, 2), (6, 7), mask_and_bias=False),  # an even kernel; 16-bit channels not 8 at a time
        Deformed(1, 12, 6, (3, 3), (9, 9), groups=3, offset_groups=2, stride=2, padding=3, dilation=2),
    ),
)
FULL = Sizes(
    boxes=(0, 1, 31, 1024, 1025, 5000, 16384, 16385, 40000),
    hostile=6000,
    head=(3, 900, 20),
    maps=(2, 136, 40, 61),
    sensitive=(2, 5 * 49, 38, 50),
    bins=(7, 7),
    rois=150,
    deformed=(
        *SMALL.deformed,
        Deformed(2, 64, 64, (3, 3), (32, 40)),
        Deformed(1, 9, 9, (1, 1), (8, 6), groups=9, padding=0),
        Deformed(3, 96, 32, (3, 3), (28, 30), dilation=2),
    ),
)


def cases(sizes: Sizes, dtypes: list[str]) -> Iterator[Case]:
    """Every operator, in each of the dtypes where it computes on floats of the caller."""
    for n in sizes.boxes:
        few = [(dtype, threshold) for dtype, threshold in _THRESHOLDS.items() if dtype in dtypes and n < 3000]
        for dtype, threshold in few or [("float32", 0.5)]:
            yield from _nms(n, dtype, threshold)
    yield from _hostile_nms(sizes.hostile)
    yield from _multiclass_nms(sizes.head, dtypes)
    for name in _OF_INTEGERS:
        yield _ordinary(name, "int32")
    yield _ordinary("masks_to_boxes", "bool")
    for dtype in dtypes:
        for name in load("tests.operators").OPERATORS:
            yield _ordinary(name, dtype)
        yield from _points(dtype)
        yield from _roi(sizes, dtype)
        yield from _pyramid(dtype)
        for deformed in sizes.deformed:
            yield from _deform(deformed, dtype)
    yield from _pool(_normal((1, 3, 70, 80), "float32"), rois(20, 70, 80, 0.5), "several tiles of a map")
    yield from _channels_last(sizes)


def _ordinary(name: str, dtype: str) -> Case:
    """The call of the operator's row, its float32 and bool arrays in this dtype."""

    def cast(array: Array) -> Array:
        return array.astype(_dtype(dtype)) if array.dtype.kind == "b" or array.dtype == np.float32 else array

    table, function = load("tests.operators"), getattr(cvops, name)
    row = table.OPERATORS[name]
    args = [table.converted(value, cast) for value in row.args]
    options = inspect.signature(function).bind(*args, **row.options).arguments
    lists = {key: maps for key, maps in options.items() if isinstance(maps, list) and isinstance(maps[0], np.ndarray)}
    arrays: Arrays = {key: value for key, value in options.items() if isinstance(value, np.ndarray)}
    call = partial(function, **{key: value for key, value in options.items() if key not in arrays | lists})

    def call_with_lists(**arrays: Any) -> Any:
        for key, maps in lists.items():
            arrays[key] = [arrays.pop(f"{key} {i}") for i in range(len(maps))]
        return call(**arrays)

    listed = {f"{key} {i}": array for key, maps in lists.items() for i, array in enumerate(maps)}
    wide = [table.converted(value, _wide) for value in args]
    return Case(
        f"{name}, {dtype}, ordinary", call_with_lists if lists else call, arrays | listed,
        partial(row.want, *wide, **row.options), captured=not row.ragged,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ boxes

_THRESHOLDS = {"float32": 0.5, "float64": 0.3, "float16": 0.7, "bfloat16": 0.05}


def _nms(n: int, dtype: str, threshold: float) -> Iterator[Case]:
    reference, label = load("tests.reference"), f"{n} boxes, {dtype}"
    boxes, scores, idxs = clustered(n, seed=n)
    of_nms: Arrays = {"boxes": boxes.astype(_dtype(dtype)), "scores": scores.astype(_dtype(dtype))}
    wide = _widened(of_nms)

    @functools.cache
    def kept() -> Array:
        return reference.nms_of_many(wide["boxes"], wide["scores"], threshold)  # type: ignore[no-any-return]

    @functools.cache
    def kept_of_classes() -> Array:
        return reference.batched_nms_of_many(wide["boxes"], wide["scores"], idxs, threshold)  # type: ignore[no-any-return]

    plain, padded = {"iou_threshold": threshold}, {"iou_threshold": threshold, "padded": True}
    batched: Arrays = {**of_nms, "idxs": idxs}
    floats: Arrays = {**of_nms, "idxs": idxs.astype(np.float32)}
    yield Case(f"nms, {label}", partial(cvops.nms, **plain), of_nms, kept, False)
    yield Case(f"nms, padded, {label}", partial(cvops.nms, **padded), of_nms, lambda: _padded(kept(), n))
    yield Case(f"batched_nms, {label}", partial(cvops.batched_nms, **plain), batched, kept_of_classes, False)
    name = f"batched_nms, padded, classes as floats, {label}"
    yield Case(name, partial(cvops.batched_nms, **padded), floats, lambda: _padded(kept_of_classes(), n))


def _padded(keep: Array, length: int) -> tuple[Array, Array]:
    indices = np.full(length, -1, np.int64)
    indices[: len(keep)] = keep
    return indices, np.array(len(keep))


def _hostile_nms(n: int) -> Iterator[Case]:
    reference = load("tests.reference")
    for name, boxes in hostile(n).items():
        arrays: Arrays = {"boxes": boxes, "scores": uniform_scores(n)}
        want = partial(reference.nms_of_many, **arrays, iou_threshold=0.5)
        yield Case(f"nms, {name}", partial(cvops.nms, iou_threshold=0.5), arrays, want, False)
    boxes, scores, _ = clustered(300)
    scores[::7], scores[1::9], boxes[5, 2] = np.nan, 0.5, np.nan
    options: dict[str, Any] = {"iou_threshold": 0.5, "score_threshold": 0.4, "max_output": 20}
    case = _case("nms", {"boxes": boxes, "scores": scores}, "tests.reference", "NaN, ties, limits", **options)
    yield case._replace(captured=False)


def _multiclass_nms(head: tuple[int, int, int], dtypes: list[str]) -> Iterator[Case]:
    """Of scores in the order (N, C, L); the floors of classes and the objectness are arrays too."""
    images, length, classes = head
    random = np.random.default_rng(0)
    boxes = clustered(images * length)[0].reshape(images, length, 4)
    arrays: Arrays = {"boxes": boxes, "scores": random.random((images, classes, length)).transpose(0, 2, 1)}
    factors: Arrays = {"objectness": random.random((images, length)), "score_threshold": random.random(classes)}
    limits: dict[str, Any] = {"max_candidates": length, "max_per_class": 9, "max_output": 40}
    for dtype in dtypes:
        given = {name: array.astype(_dtype(dtype)) for name, array in arrays.items()}
        more: Arrays = given | {name: array.astype(_dtype(dtype)) for name, array in factors.items()}
        for label, of_case, options in (
            ("", given, {"score_threshold": 0.7}),
            ("padded", given, {"padded": True, **limits}),
            ("best class", more, {"padded": True, "multi_label": False, "max_output": 40}),
            ("floors", more, {"padded": True, "class_agnostic": True, **limits}),
        ):
            name = ", ".join(filter(None, [label, dtype]))
            case = _case("multiclass_nms", of_case, "tests.reference_multiclass", name, iou_threshold=0.5, **options)
            yield case._replace(captured=bool(label))


_OF_INTEGERS = (
    *("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou", "box_area", "box_convert"),
    *("clip_boxes_to_image", "remove_small_boxes"),
)


def _points(dtype: str) -> Iterator[Case]:
    """Points and anchors, like an array that is there."""
    module, maps = load("tests.reference_decode"), {"sizes": [(4, 6), (2, 3)], "strides": [8, 16]}
    for name, options in (("make_points", {}), ("make_anchors", {"scales": (32, 45), "ratios": (0.5, 1)})):
        want = partial(getattr(module, name), **maps, **options, dtype="float32" if dtype == "bfloat16" else dtype)
        like = {"like": _normal((2, 40, 4), dtype)}
        yield Case(f"{name}, {dtype}", partial(getattr(cvops, name), **maps, **options), like, want)


# -------------------------------------------------------------------------------------------------------------- RoIs


def _roi(sizes: Sizes, dtype: str) -> Iterator[Case]:
    module = "tests.reference_roi"
    maps, boxes = _normal(sizes.maps, dtype), _rois_of(sizes, sizes.maps)
    for bins, ratio, aligned in (((7, 7), 2, False), ((3, 5), -1, True), ((1, 1), 0, True)):
        options: dict[str, Any] = {"spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned}
        label = f"{bins}, {ratio} samples, {dtype}"
        yield _case("roi_align", {"input": maps, "boxes": boxes}, module, label, output_size=bins, **options)
        arrays: Arrays = {"grad": _normal((len(boxes), sizes.maps[1], *bins), dtype), "boxes": boxes}
        yield _case("roi_align_backward", arrays, module, label, input_shape=sizes.maps, **options)
    yield from _pool(maps, boxes, dtype)
    planes, boxes = _normal(sizes.sensitive, dtype), _rois_of(sizes, sizes.sensitive)
    grad = _normal((len(boxes), sizes.sensitive[1] // (sizes.bins[0] * sizes.bins[1]), *sizes.bins), dtype)
    for name, samples in (("ps_roi_align", {"sampling_ratio": -1}), ("ps_roi_pool", {})):
        of_name: dict[str, Any] = {"spatial_scale": 0.5, **samples}
        yield _case(name, {"input": planes, "boxes": boxes}, module, dtype, output_size=sizes.bins, **of_name)
        arrays = {"grad": grad, "boxes": boxes}
        yield _case(f"{name}_backward", arrays, module, dtype, input_shape=sizes.sensitive, **of_name)


def _pool(maps: Array, boxes: Array, label: str) -> Iterator[Case]:
    """roi_pool with its argmax, and the gradient by it."""
    module, size, scale = load("tests.reference_roi"), (5, 7), 0.5
    given: Arrays = {"input": maps, "boxes": boxes}
    want = functools.cache(lambda: module.roi_pool(**_widened(given), output_size=size, spatial_scale=scale))
    call = partial(cvops.roi_pool, output_size=size, spatial_scale=scale, return_argmax=True)
    yield Case(f"roi_pool, {label}", call, given, want)
    grad = _normal((len(boxes), maps.shape[1], *size), maps.dtype)
    arrays: Arrays = {"grad": grad, "boxes": boxes, "argmax": want()[1]}
    yield _case("roi_pool_backward", arrays, module.__name__, label, input_shape=maps.shape, spatial_scale=scale)


def _rois_of(sizes: Sizes, shape: tuple[int, int, int, int]) -> Array:
    nan = np.nan
    odd = [[0, 5, 5, 5, 5], [1, 20, 20, 3, 4], [0, -50, -60, -3, -9], [1, -9, -9, 900, 900], [0, nan, 1, 2, 3]]
    ordinary = rois(sizes.rois, *shape[2:], 0.5, 2)
    return np.concatenate([ordinary, np.array(odd, np.float32)]) if sizes.odd_rois else ordinary


def _pyramid(dtype: str) -> Iterator[Case]:
    """The pooler and the pyramid network on three levels, which the reference knows by names."""
    roi, deform, names = load("tests.reference_roi"), load("tests.reference_deform"), ["p0", "p1", "p2"]
    maps: Arrays = {n: _normal((2, 6, 32 >> i, 44 >> i), dtype) for i, n in enumerate(names)}
    boxes: Arrays = {f"boxes{i}": pyramid_boxes(12, 32, 44, seed=i) for i in range(2)}
    scales = [1.0, 0.5, 0.25]
    common: dict[str, Any] = {"canonical_scale": 16, "canonical_level": 1, "scales": scales}
    pool = cvops.MultiScaleRoIAlign(names, 5, 2, **common)

    def pooled(p0: Any, p1: Any, p2: Any, boxes0: Any, boxes1: Any) -> Any:
        return pool({"p0": p0, "p1": p1, "p2": p2}, [boxes0, boxes1], [])

    def gradients(grad: Any, p0: Any, p1: Any, p2: Any, boxes0: Any, boxes1: Any) -> Any:
        return pool.backward(grad, {"p0": p0, "p1": p1, "p2": p2}, [boxes0, boxes1], [])

    wide, given = _widened(maps), list(boxes.values())
    grad: Arrays = {"grad": _normal((24, 6, 5, 5), dtype)}

    def want() -> Any:
        return roi.multiscale_roi_align(wide, given, [], names, 5, 2, **common)

    def want_gradients() -> Any:
        return roi.multiscale_roi_align_backward(*_widened(grad).values(), wide, given, [], names, 2, **common)

    yield Case(f"MultiScaleRoIAlign, {dtype}", pooled, {**maps, **boxes}, want)
    yield Case(f"MultiScaleRoIAlign.backward, {dtype}", gradients, {**grad, **maps, **boxes}, want_gradients)

    def pooled_by_function(p0: Any, p1: Any, p2: Any, boxes0: Any, boxes1: Any) -> Any:
        return cvops.multiscale_roi_align([p0, p1, p2], [boxes0, boxes1], 5, sampling_ratio=2, **common)

    def gradients_by_function(grad: Any, boxes0: Any, boxes1: Any) -> Any:
        shapes = [array.shape for array in maps.values()]
        return cvops.multiscale_roi_align_backward(grad, [boxes0, boxes1], shapes, sampling_ratio=2, **common)

    yield Case(f"multiscale_roi_align, {dtype}", pooled_by_function, {**maps, **boxes}, want)
    yield Case(
        f"multiscale_roi_align_backward, {dtype}", gradients_by_function, {**grad, **boxes},
        lambda: list(want_gradients().values()),
    )  # fmt: skip
    network = cvops.FeaturePyramidNetwork([6, 6, 6], 8, cvops.LastLevelP6P7(8, 8), rng=np.random.default_rng(0))
    yield Case(
        f"FeaturePyramidNetwork, {dtype}", lambda **maps: network(maps), maps,
        lambda: deform.feature_pyramid(wide, network.state_dict(), "p6p7"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- deformable convolution


def _deform(deformed: Deformed, dtype: str) -> Iterator[Case]:
    arrays, grad, steps = _deformed_arrays(deformed, dtype)
    label = f"{deformed.channels} channels of {deformed.size}, {deformed.kernel}, {dtype}"
    yield _case("deform_conv2d", arrays, "tests.reference_deform", label, **steps)
    yield _case("deform_conv2d_backward", {"grad": grad, **arrays}, "tests.reference_deform", label, **steps)


def _deformed_arrays(d: Deformed, dtype: str) -> tuple[Arrays, Array, dict[str, Any]]:
    height, width = (
        (n + 2 * d.padding - d.dilation * (k - 1) - 1) // d.stride + 1 for n, k in zip(d.size, d.kernel, strict=True)
    )
    taps = d.kernel[0] * d.kernel[1]
    small = 1 / np.sqrt(taps * d.channels / d.groups)  # so that results are about 1
    arrays: Arrays = {
        "input": _normal((d.images, d.channels, *d.size), dtype, 1),
        "offset": _normal((d.images, 2 * d.offset_groups * taps, height, width), dtype, 2, 2.0),
        "weight": _normal((d.outputs, d.channels // d.groups, *d.kernel), dtype, 3, small),
    }
    if d.mask_and_bias:
        arrays["bias"] = _normal((d.outputs,), dtype, 4)
        arrays["mask"] = _normal((d.images, d.offset_groups * taps, height, width), dtype, 5)
    steps = {"stride": d.stride, "padding": d.padding, "dilation": d.dilation}
    return arrays, _normal((d.images, d.outputs, height, width), dtype, 6), steps


def _channels_last(sizes: Sizes) -> Iterator[Case]:
    """Maps whose channels lie next to each other, which kernels read where they are."""
    maps, boxes = _last(_normal(sizes.maps, "float32")), _rois_of(sizes, sizes.maps)
    arrays: Arrays = {"input": maps, "boxes": boxes}
    options: dict[str, Any] = {"output_size": (3, 5), "spatial_scale": 0.5}
    yield _case("roi_align", arrays, "tests.reference_roi", "channels last", **options)
    arrays, _, steps = _deformed_arrays(sizes.deformed[0], "float32")
    arrays["input"] = _last(arrays["input"])
    yield _case("deform_conv2d", arrays, "tests.reference_deform", "channels last", **steps)


# ------------------------------------------------------------------------------------------------------------ pieces


def _case(name: str, arrays: Arrays, module: str, label: str = "", **options: Any) -> Case:
    """A call of a public function whose reference has its name and its arguments."""
    answer = partial(getattr(load(module), name), **options)
    call = partial(getattr(cvops, name), **options)
    return Case(", ".join(filter(None, [name, label])), call, arrays, lambda: answer(**_widened(arrays)))


def _dtype(name: Any) -> Any:
    return np.dtype(load("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def _normal(shape: tuple[int, ...], dtype: Any, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(_dtype(dtype))


def _last(array: Any) -> Array:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def _wide(array: Array) -> Array:
    """The references take bfloat16 for float32."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _widened(arrays: Arrays) -> Arrays:
    return {name: _wide(array) for name, array in arrays.items()}


def require_close(got: Any, want: Any) -> None:
    """Raise unless `got`, of NumPy arrays, is as `want`: structure, shapes, dtypes and, up to rounding, values."""
    if isinstance(want, dict):
        assert list(got) == list(want), f"{list(got)} for {list(want)}"
        got, want = list(got.values()), list(want.values())
    if isinstance(want, list | tuple):
        for each, expected in zip(got, want, strict=True):
            require_close(each, expected)
        return
    if want is None:
        assert got is None, "an array for None"
        return
    assert got.shape == want.shape, f"shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype or got.dtype.name == "bfloat16", f"{got.dtype}, not {want.dtype}"
    if want.dtype.kind in "biu":
        assert np.array_equal(got, want), f"{(got != want).sum()} of {got.size} differ"
        return
    bound = TOLERANCES[got.dtype.name]
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), "NaN or infinities differ"
    if finite.any():
        error = np.abs(got[finite] - want[finite]).max() / max(1, np.abs(want[finite]).max())
        assert error <= bound, f"off by {error:.1e} of the largest, more than {bound:.0e}"
