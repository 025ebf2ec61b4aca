"""Feature pyramids: pooling from the level that suits the size of each box."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, NamedTuple

from ._arrays import backend_of, to_caller
from ._checks import check_grad, check_images, image_size, integer, pair, positive, ratio, working_dtype
from ._roi import named_boxes, rois_of


@dataclass(frozen=True, repr=False)
class MultiScaleRoIAlign:
    """Pool each box from one map of a feature pyramid, chosen by the size of the box [1]_: roi_align for an FPN.

    Parameters
    ----------
    featmap_names : sequence of str
        Names of the maps to pool from, in any order.
    output_size : int >= 1 or (int, int)
        Height and width of the output, in bins.
    sampling_ratio : int
        Samples along each axis of a bin; 0 or less means ``ceil(RoI size / output size)`` along each axis.
    canonical_scale, canonical_level : int
        A box of ``canonical_scale`` x ``canonical_scale`` pixels is pooled from level ``canonical_level``, the one of
        scale ``2 ** -canonical_level``.
    aligned : bool
        As in `roi_align`.
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

    Notes
    -----
    The level of a box is ``floor(canonical_level + log2(sqrt(area) / canonical_scale) + 1e-6)``, no finer or coarser
    than the levels there are; if just that level is missing, it is the next coarser one. A box whose area is zero,
    negative or NaN is pooled from the finest level. All levels are pooled in one go into one result. The result is the
    same for any number of threads.

    References
    ----------
    .. [1] T.-Y. Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    """

    featmap_names: Sequence[str]
    output_size: int | tuple[int, int]
    sampling_ratio: int
    _: KW_ONLY
    canonical_scale: int = 224
    canonical_level: int = 4
    aligned: bool = False
    scales: Sequence[float] | None = None

    def __repr__(self) -> str:
        required = f"featmap_names={self.featmap_names!r}, output_size={pair(self.output_size, 'output_size')}"
        options = [
            f", {option.name}={getattr(self, option.name)!r}"
            for option in fields(self)
            if option.kw_only and getattr(self, option.name) != option.default
        ]
        return f"MultiScaleRoIAlign({required}, sampling_ratio={self.sampling_ratio}{''.join(options)})"

    def __call__(self, features: Mapping[str, Any], boxes: Any, image_shapes: Sequence[tuple[int, int]]) -> Any:
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
            As `roi_align`; also if the maps do not fit together, two have one scale, or there is no image shape.
        """
        pyramid = self._pyramid(features, boxes, image_shapes)
        pooled = pyramid.backend.multiscale_roi_align(
            pyramid.maps,
            pyramid.rois,
            pair(self.output_size, "output_size"),
            pyramid.scales,
            pyramid.area_limits,
            ratio(self.sampling_ratio, "sampling_ratio"),
            bool(self.aligned),
        )
        return to_caller(pooled, features[pyramid.names[0]])

    def backward(
        self, grad: Any, features: Mapping[str, Any], boxes: Any, image_shapes: Sequence[tuple[int, int]]
    ) -> dict[str, Any]:
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
        Deterministic: the same bits in every run and for any number of threads.
        """
        pyramid = self._pyramid(features, boxes, image_shapes, grad=grad)
        native = pyramid.backend.asarray(grad, "grad")
        size = pair(self.output_size, "output_size")
        check_grad(native, "grad", len(pyramid.rois), pyramid.maps[0].shape[1], size)
        gradients = pyramid.backend.multiscale_roi_align_backward(
            native,
            pyramid.rois,
            [array.shape for array in pyramid.maps],
            pyramid.scales,
            pyramid.area_limits,
            ratio(self.sampling_ratio, "sampling_ratio"),
            bool(self.aligned),
        )
        by_name = dict(zip(pyramid.names, gradients, strict=True))
        return {name: to_caller(by_name[name], grad) for name in self.featmap_names}

    def _pyramid(
        self, features: Mapping[str, Any], boxes: Any, image_shapes: Sequence[tuple[int, int]], **more: Any
    ) -> _Pyramid:
        missing = [name for name in self.featmap_names if name not in features]
        if missing or not self.featmap_names:
            raise KeyError(f"`features` must have {missing or 'a map to pool from'}, got {list(features)}")
        given = {f"features[{name!r}]": features[name] for name in self.featmap_names}
        backend = backend_of(**given, **named_boxes(boxes), **more)
        maps = [backend.asarray(array, name) for name, array in given.items()]
        for name, array in zip(given, maps, strict=True):
            check_images(array, name)
            if array.shape[:2] != maps[0].shape[:2]:
                one = next(iter(given))
                raise ValueError(f"`{one}` and `{name}` must agree in N and C, got {maps[0].shape} and {array.shape}")
            if array.dtype != maps[0].dtype:
                raise TypeError(f"`{name}` must be {maps[0].dtype} as `{next(iter(given))}`, got {array.dtype}")
        rois = rois_of(boxes, len(maps[0]), maps[0], backend)
        dtype = working_dtype(maps[0], rois)

        scales = self._scales([array.shape[2] for array in maps], image_shapes)
        order = sorted(range(len(maps)), key=lambda i: -scales[i])
        scales = [scales[i] for i in order]
        for fine, coarse in itertools.pairwise(scales):
            if fine == coarse:
                raise ValueError(f"`features` must have maps of different scales, got two of scale {fine:g}")
        limits = [
            _least_area(
                math.floor(-math.log2(scale)) + 1,
                positive(self.canonical_scale, "canonical_scale"),
                integer(self.canonical_level, "canonical_level"),
                dtype,
            )
            for scale in scales[:-1]
        ]
        return _Pyramid(
            backend,
            [self.featmap_names[i] for i in order],
            [maps[i] for i in order],
            backend.asarray(rois.astype(dtype, copy=False), "boxes"),
            scales,
            limits,
        )

    def _scales(self, heights: list[int], image_shapes: Sequence[tuple[int, int]]) -> list[float]:
        """Cells per pixel of maps with these heights, in the order of `featmap_names`."""
        if self.scales is not None:
            if len(self.scales) != len(heights):
                raise ValueError(f"`scales` must have one number for each of {list(self.featmap_names)}")
            return [positive(scale, "scales") for scale in self.scales]
        if not isinstance(image_shapes, (tuple, list)):
            raise TypeError(f"`image_shapes` must be a list of (height, width), got {type(image_shapes).__name__}")
        if not image_shapes:
            raise ValueError("`image_shapes` must have at least one (height, width)")
        tallest = max(image_size(shape, "image_shapes")[0] for shape in image_shapes)
        return [2.0 ** round(math.log2(height / tallest)) for height in heights]


class _Pyramid(NamedTuple):
    """Native arguments of a call, checked, from the finest map to the coarsest."""

    backend: Any
    names: list[str]
    maps: list[Any]
    rois: Any
    scales: list[float]
    area_limits: list[float]  # smallest area of a box that is pooled from the second map, from the third, ...


@functools.lru_cache(maxsize=256)
def _least_area(level: int, canonical_scale: float, canonical_level: int, dtype: str) -> float:
    """Return the smallest area of a box of this level, by the formula of the class computed in this precision.

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
