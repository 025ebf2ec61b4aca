"""roi_align from the map of a feature pyramid that suits the size of each box: the functions and the class."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ._arrays import backend_of, to_caller
from ._checks import (
    as_sampling_ratio,
    check_grad,
    check_images,
    count,
    flag,
    image_shape,
    image_size,
    kind,
    numbers,
    pair,
    positive,
    strings,
    working_dtype,
)
from ._roi import named_boxes, rois_of
from ._with_options import WithOptions

if TYPE_CHECKING:
    from ._types import Array, ArrayT, Integer, Ints, Number, Rois


def multiscale_roi_align(
    features: Sequence[ArrayT],
    boxes: Rois,
    output_size: Ints,
    *,
    scales: Sequence[Number],
    sampling_ratio: Integer = -1,
    canonical_scale: Number = 224,
    canonical_level: Integer = 4,
    aligned: bool = False,
) -> ArrayT:
    """Pool each box from one map of a feature pyramid, chosen by the size of the box [1]_: roi_align for an FPN.

    Parameters
    ----------
    features : list of arrays of shape (N, C, H, W), float64 | float32 | float16, on a GPU also bfloat16
        The maps in any order, all of one dtype, N and C.
    boxes : array of shape (K, 5), float64 | float32 | float16 | bfloat16, or list of N arrays of shape (L_i, 4)
        Rows ``image index, x1, y1, x2, y2`` in pixels of the image, or the corners alone, one array for each image.
    output_size : int >= 1 or (int, int)
        Height and width of the output, in bins.
    scales : sequence of float > 0
        Cells of each map for one pixel of the image.
    sampling_ratio : int
        Samples along each axis of a bin; 0 or less means ``ceil(RoI size / output size)`` along each axis.
    canonical_scale, canonical_level : int
        A box of ``canonical_scale`` x ``canonical_scale`` pixels is pooled from level ``canonical_level``, the one of
        scale ``2 ** -canonical_level``.
    aligned : bool
        As in `roi_align`.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width)
        Of the dtype, library and device of the maps, the boxes of a list image after image.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`; also if the maps do not fit together, or there is not one scale for each.

    See Also
    --------
    MultiScaleRoIAlign : the same for maps that have names, with scales taken from their sizes.

    Notes
    -----
    The level of a box is ``floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6)``, no finer or coarser
    than the levels there are; if just that level is missing, it is the next coarser one. A box whose area is zero,
    negative or NaN is pooled from the finest level. Of maps of one scale the first takes the boxes. All levels are
    pooled in one go into one result. The result is the same for any number of threads. On a GPU nothing waits for the
    device.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> fine, coarse = np.full((1, 1, 64, 64), 2, np.float32), np.full((1, 1, 32, 32), 3, np.float32)
    >>> boxes = np.array([[0, 0, 0, 50, 50], [0, 0, 0, 150, 150]], np.float32)
    >>> cvops.multiscale_roi_align([fine, coarse], boxes, 1, scales=[1 / 4, 1 / 8], sampling_ratio=1).ravel()
    array([2., 3.], dtype=float32)
    """
    options = Options(sampling_ratio, canonical_scale, canonical_level, aligned)
    return _pool(named_maps(features), boxes, output_size, lambda _: scales, options)


def multiscale_roi_align_backward(
    grad: ArrayT,
    boxes: Rois,
    input_shapes: Sequence[Sequence[Integer]],
    *,
    scales: Sequence[Number],
    sampling_ratio: Integer = -1,
    canonical_scale: Number = 224,
    canonical_level: Integer = 4,
    aligned: bool = False,
) -> list[ArrayT]:
    """Gradients of `multiscale_roi_align` with respect to its maps.

    Parameters
    ----------
    grad : array of shape (K, C, PH, PW), float64 | float32 | float16, on a GPU also bfloat16
        Gradient with respect to the output of `multiscale_roi_align`, of any strides; its shape tells the output size.
    boxes, scales, sampling_ratio, canonical_scale, canonical_level, aligned
        As given to `multiscale_roi_align`.
    input_shapes : list of (int, int, int, int)
        Shape (N, C, H, W) of each map.

    Returns
    -------
    gradients : list of arrays of the shapes `input_shapes`
        Of the dtype, library and device of `grad`.

    Raises
    ------
    TypeError, ValueError
        As `multiscale_roi_align`; also if the shapes of `grad`, `boxes` and `input_shapes` do not fit together.

    Notes
    -----
    Deterministic: the same bits in every run and for any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> grad, boxes = np.ones((1, 1, 1, 1), np.float32), np.array([[0, 0, 0, 8, 8]], np.float32)
    >>> shapes = [(1, 1, 4, 4), (1, 1, 2, 2)]
    >>> fine, coarse = cvops.multiscale_roi_align_backward(grad, boxes, shapes, scales=[1 / 4, 1 / 8])
    >>> fine.sum(), coarse.sum()
    (np.float32(1.0), np.float32(0.0))
    """
    with backend_of(grad=grad, **named_boxes(boxes)) as backend:
        if not isinstance(input_shapes, (list, tuple)):
            raise TypeError(f"`input_shapes` must be a list of (N, C, H, W), got {kind(input_shapes)}")
        shapes = [image_shape(shape, f"input_shapes[{i}]") for i, shape in enumerate(input_shapes)]
        for i, shape in enumerate(shapes):
            if shape[:2] != shapes[0][:2]:
                text = f"`input_shapes[0]` and `input_shapes[{i}]` must agree in N and C, got {shapes[0]} and {shape}"
                raise ValueError(text)
        if not shapes:
            raise ValueError("`input_shapes` must have the shape of a map to pool from, got none")
        native = backend.asarray(grad, "grad")
        options = Options(sampling_ratio, canonical_scale, canonical_level, aligned)
        pyramid = arranged(shapes, boxes, scales, options, native, backend)
        return [to_caller(gradient, grad) for gradient in _gradients(native, shapes, pyramid, None, backend)]


class MultiScaleRoIAlign(WithOptions):
    """`multiscale_roi_align` of maps by name, at scales that follow from their sizes.

    Parameters
    ----------
    featmap_names : sequence of str
        Names of the maps to pool from, in any order.
    output_size, sampling_ratio, canonical_scale, canonical_level, aligned
        As in `multiscale_roi_align`.
    scales : sequence of float, optional
        Cells per pixel of each map, in the order of `featmap_names`. By default every call takes them from the sizes
        of the maps and of the images, as powers of 2.

    Examples
    --------
    >>> import numpy as np
    >>> import cvops
    >>> pool = cvops.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    >>> features = {"p2": np.zeros((1, 8, 64, 64), np.float32), "p3": np.zeros((1, 8, 32, 32), np.float32)}
    >>> boxes = [np.array([[0, 0, 20, 30], [5, 5, 250, 250]], np.float32)]
    >>> pool(features, boxes, image_shapes=[(256, 256)]).shape
    (2, 8, 7, 7)
    """

    featmap_names: Sequence[str]
    output_size: Ints
    sampling_ratio: Integer
    canonical_scale: Number
    canonical_level: Integer
    aligned: bool
    scales: Sequence[Number] | None

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: Ints,
        sampling_ratio: Integer,
        *,
        canonical_scale: Number = 224,
        canonical_level: Integer = 4,
        aligned: bool = False,
        scales: Sequence[Number] | None = None,
    ) -> None:
        vars(self).update(featmap_names=featmap_names, output_size=output_size, sampling_ratio=sampling_ratio)
        vars(self).update(canonical_scale=canonical_scale, canonical_level=canonical_level)
        vars(self).update(aligned=aligned, scales=scales)

    def __repr__(self) -> str:
        required = f"featmap_names={self.featmap_names!r}, output_size={pair(self.output_size, 'output_size')}"
        defaults = vars(MultiScaleRoIAlign(self.featmap_names, self.output_size, self.sampling_ratio))
        options = [f", {name}={value!r}" for name, value in vars(self).items() if value != defaults[name]]
        return f"MultiScaleRoIAlign({required}, sampling_ratio={self.sampling_ratio}{''.join(options)})"

    def __call__(
        self, features: Mapping[str, ArrayT], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> ArrayT:
        """Pool every box.

        Parameters
        ----------
        features : dict of arrays of shape (N, C, H, W), float64 | float32 | float16
            The maps, all of one dtype, N and C. Those that `featmap_names` does not name are left alone.
        boxes : list of N arrays of shape (L_i, 4), float64 | float32 | float16, or array of shape (K, 5)
            Corners ``x1, y1, x2, y2`` in pixels of the images, or these after the image index.
        image_shapes : list of (int, int)
            Height and width of each image, before any padding to the shape of the batch. Not used if `scales` is given.

        Returns
        -------
        pooled : array of shape (K, C, output height, output width)
            The boxes of the first image, of the second, ...; of the dtype, library and device of the maps.

        Raises
        ------
        KeyError
            `features` lacks a map.
        TypeError, ValueError
            As `multiscale_roi_align`; also if there is no image shape.
        """
        scales = functools.partial(self._scales, image_shapes)
        return _pool(maps_by_name(features, self.featmap_names), boxes, self.output_size, scales, self._options())

    def backward(
        self, grad: ArrayT, features: Mapping[str, Array], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> dict[str, ArrayT]:
        """Gradients with respect to the maps, given the gradient with respect to the pooled boxes.

        Parameters
        ----------
        grad : array of shape (K, C, PH, PW), float64 | float32 | float16
            Of any strides.
        features, boxes, image_shapes
            As in the call. Of the maps only the shapes and the dtype matter.

        Returns
        -------
        gradients : dict of arrays
            For each name in `featmap_names` an array of the shape of the map and the dtype of `grad`.

        Raises
        ------
        KeyError, TypeError, ValueError
            As the call; also if the shape of `grad` does not fit.

        Notes
        -----
        As `multiscale_roi_align_backward`.
        """
        given = maps_by_name(features, self.featmap_names)
        with backend_of(**given, **named_boxes(boxes), grad=grad) as backend:
            maps = checked_maps(given, backend)
            shapes = [array.shape for array in maps]
            scales = self._scales(image_shapes, [shape[2] for shape in shapes])
            # The precision of the forward pass decides the levels, not that of `grad`.
            pyramid = arranged(shapes, boxes, scales, self._options(), maps[0], backend)
            native, size = backend.asarray(grad, "grad"), pair(self.output_size, "output_size")
            gradients = _gradients(native, shapes, pyramid, size, backend)
            return {name: to_caller(one, grad) for name, one in zip(self.featmap_names, gradients, strict=True)}

    def _options(self) -> Options:
        return Options(self.sampling_ratio, self.canonical_scale, self.canonical_level, self.aligned)

    def _scales(self, image_shapes: Sequence[Sequence[Integer]], heights: list[int]) -> Sequence[Number]:
        """Cells per pixel of maps with these heights, in the order of `featmap_names`."""
        return scales_of(heights, image_shapes) if self.scales is None else self.scales


class Options(NamedTuple):
    """Options of a call, as they were given."""

    sampling_ratio: Integer
    canonical_scale: Number
    canonical_level: Integer
    aligned: bool


class Pyramid(NamedTuple):
    """What a backend takes beside the maps, checked. Its maps lie from the finest to the coarsest."""

    order: list[int]  # which of the caller's maps they are
    rois: Any
    scales: list[float]
    area_limits: list[float]  # smallest area of a box that is pooled from the second map, from the third, ...
    sampling_ratio: int
    aligned: bool


def _pool(
    named: dict[str, ArrayT],
    boxes: Any,
    output_size: Any,
    scales: Callable[[list[int]], Sequence[Number]],  # of the heights of the maps
    options: Options,
) -> ArrayT:
    """The operator, on maps by the names that errors give them."""
    with backend_of(**named, **named_boxes(boxes)) as backend:
        maps = checked_maps(named, backend)
        shapes = [array.shape for array in maps]
        pyramid = arranged(shapes, boxes, scales([shape[2] for shape in shapes]), options, maps[0], backend)
        order, rois, *rest = pyramid
        size = pair(output_size, "output_size")
        pooled = backend.multiscale_roi_align([maps[i] for i in order], rois, size, *rest)
        return to_caller(pooled, next(iter(named.values())))


def _gradients(
    grad: Any, shapes: list[Any], pyramid: Pyramid, output_size: tuple[int, int] | None, backend: Any
) -> list[Any]:
    """Native gradients of the maps of these shapes, in the caller's order."""
    order, rois, *rest = pyramid
    check_grad(grad, "grad", len(rois), shapes[0][1], output_size)
    gradients = backend.multiscale_roi_align_backward(grad, rois, [shapes[i] for i in order], *rest)
    return [gradients[order.index(i)] for i in range(len(shapes))]


def named_maps(features: Sequence[ArrayT]) -> dict[str, ArrayT]:
    """The maps by the names that errors give them."""
    if not isinstance(features, (list, tuple)):
        raise TypeError(f"`features` must be a list of arrays, got {kind(features)}")
    if not features:
        raise ValueError("`features` must have a map to pool from, got none")
    return {f"features[{i}]": array for i, array in enumerate(features)}


def maps_by_name(features: Mapping[str, ArrayT], featmap_names: Sequence[str]) -> dict[str, ArrayT]:
    """The maps of these names, by the names that errors give them."""
    names = strings(featmap_names, "featmap_names")
    if not isinstance(features, Mapping):
        raise TypeError(f"`features` must be a dict of arrays by name, got {kind(features)}")
    missing = [name for name in names if name not in features]
    if missing or not names:
        raise KeyError(f"`features` must have {missing or 'a map to pool from'}, got {list(features)}")
    return {f"features[{name!r}]": features[name] for name in names}


def checked_maps(named: dict[str, Any], backend: Any) -> list[Any]:
    """The native maps, which fit together."""
    maps = [backend.asarray(array, name) for name, array in named.items()]
    first = next(iter(named))
    for name, array in zip(named, maps, strict=True):
        check_images(array, name)
        if array.shape[:2] != maps[0].shape[:2]:
            raise ValueError(f"`{first}` and `{name}` must agree in N and C, got {maps[0].shape} and {array.shape}")
        if array.dtype != maps[0].dtype:
            raise TypeError(f"`{name}` must be {maps[0].dtype} as `{first}`, got {array.dtype}")
    return maps


def arranged(
    shapes: list[Any], boxes: Any, scales: Sequence[Number], options: Options, like: Any, backend: Any
) -> Pyramid:
    """Maps of these shapes from fine to coarse; `like` is an array whose precision takes part in the decisions."""
    rois = rois_of(boxes, shapes[0][0], like, backend)
    dtype = working_dtype(like, rois)
    given = [positive(scale, "scales") for scale in numbers(scales, "scales")]
    if len(given) != len(shapes):
        raise ValueError(f"`scales` must have one number for each of {len(shapes)} maps, got {len(given)}")
    order = sorted(range(len(given)), key=lambda i: -given[i])  # maps of one scale stay in the caller's order
    in_order = [given[i] for i in order]
    canonical_scale = positive(options.canonical_scale, "canonical_scale")
    canonical_level = count(options.canonical_level, "canonical_level", -(2**31))
    # Maps of one scale have one limit, so that no area lies between them; no area reaches NaN.
    limits = [
        _least_area(math.floor(-math.log2(scale)) + 1, canonical_scale, canonical_level, dtype)
        if scale > in_order[-1]
        else math.nan
        for scale in in_order[:-1]
    ]
    if backend.current_gpu() is not None:
        rois = backend.asarray(rois.astype(dtype, copy=False), "boxes")
    samples = as_sampling_ratio(options.sampling_ratio, "sampling_ratio")
    return Pyramid(order, rois, in_order, limits, samples, flag(options.aligned, "aligned"))


def scales_of(heights: list[int], image_shapes: Any) -> list[float]:
    """Cells per pixel of maps with these heights, made of images of these shapes: powers of 2."""
    if not isinstance(image_shapes, (tuple, list)):
        raise TypeError(f"`image_shapes` must be a list of (height, width), got {kind(image_shapes)}")
    if not image_shapes:
        raise ValueError("`image_shapes` must have at least one (height, width)")
    tallest = max(image_size(shape, "image_shapes")[0] for shape in image_shapes)
    return [2.0 ** round(math.log2(height / tallest)) for height in heights]


@functools.lru_cache(maxsize=256)
def _least_area(level: int, canonical_scale: float, canonical_level: int, dtype: str) -> float:
    """Return the smallest area of a box of this level, by the formula above computed in this precision.

    Comparing areas with it decides as the formula does, rounding included, on every processor.
    """
    import numpy as np

    real, bits = (np.float64, np.int64) if dtype == "d" else (np.float32, np.int32)

    def level_of(area: Any) -> Any:
        with np.errstate(all="ignore"):
            side = np.sqrt(area) / real(canonical_scale)
            octaves = real(math.log2(side)) if side > 0 else real(-math.inf)
            return np.floor((real(canonical_level) + octaves) + real(1e-6))

    low, high = 1, int(real(math.inf).view(bits))  # positive floats are in the order of their bits
    while low < high:
        middle = (low + high) // 2
        if level_of(bits(middle).view(real)) >= level:
            high = middle
        else:
            low = middle + 1
    return float(bits(low).view(real))
