"""Pooling from a feature pyramid in JAX programs, and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import cvops

from .._checks import check_boxes_of_images, flag, integer, pair, positive, ratio, strings
from ._ffi import foreign
from ._roi import joined
from ._traced import TRACED, Array, Rois, result_of, varying_alike

if TYPE_CHECKING:
    from .._types import Integer, Ints, Number


@dataclass(frozen=True)
class MultiScaleRoIAlign:
    """Pool each box from the map of a feature pyramid that suits its size: `cvops.MultiScaleRoIAlign`, differentiable.

    Parameters
    ----------
    featmap_names, output_size, sampling_ratio, canonical_scale, canonical_level, aligned, scales
        As in `cvops.MultiScaleRoIAlign`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> pool = cvops.jax.MultiScaleRoIAlign(["p2", "p3"], output_size=7, sampling_ratio=2)
    >>> features = {"p2": jnp.zeros((1, 8, 64, 64)), "p3": jnp.zeros((1, 8, 32, 32))}
    >>> pool(features, [jnp.array([[0.0, 0, 20, 30], [5, 5, 250, 250]])], image_shapes=[(256, 256)]).shape
    (2, 8, 7, 7)
    """

    featmap_names: Sequence[str]
    output_size: Ints
    sampling_ratio: Integer
    _: KW_ONLY
    canonical_scale: Number = 224
    canonical_level: Integer = 4
    aligned: bool = False
    scales: Sequence[Number] | None = None

    def __call__(
        self, features: Mapping[str, Array], boxes: Rois, image_shapes: Sequence[Sequence[Integer]]
    ) -> jax.Array:
        """Pool every box.

        Parameters
        ----------
        features, boxes, image_shapes
            As in the call of `cvops.MultiScaleRoIAlign`; the shapes are Python integers.

        Returns
        -------
        pooled : array of shape (K, C, output height, output width), dtype of the maps
            Differentiable by the maps; `boxes` have no gradient: it is 0.

        Raises
        ------
        KeyError, TypeError, ValueError
            As the call of `cvops.MultiScaleRoIAlign`; a wrong image index when the program runs.
        """
        pool = cvops.MultiScaleRoIAlign(
            strings(self.featmap_names, "featmap_names"),
            self.output_size,
            self.sampling_ratio,
            canonical_scale=self.canonical_scale,
            canonical_level=self.canonical_level,
            aligned=self.aligned,
            scales=self.scales,
        )
        given, rois = pool._maps(features), joined(boxes)
        pyramid = pool._pyramid(given, rois, image_shapes, TRACED)
        if isinstance(boxes, (list, tuple)):
            check_boxes_of_images(boxes, len(pyramid.maps[0]))
        options = {
            "output_size": pair(self.output_size, "output_size"),
            "sampling_ratio": ratio(self.sampling_ratio, "sampling_ratio"),
            "canonical_scale": positive(self.canonical_scale, "canonical_scale"),
            "canonical_level": integer(self.canonical_level, "canonical_level"),
            "aligned": flag(self.aligned, "aligned"),
            # They were found just now; the host needs no image shapes.
            "scales": tuple(pyramid.scales),
        }
        *maps, rois = varying_alike(*pyramid.maps, pyramid.rois)
        return _pooled(tuple(options.items()), tuple(array.shape for array in maps), maps, rois)


def _forward(boxes: Any, *maps: Any, **options: Any) -> Any:
    names = [str(i) for i in range(len(maps))]
    return cvops.MultiScaleRoIAlign(names, **options)(dict(zip(names, maps, strict=True)), boxes, [])


def _backward(grad: Any, boxes: Any, *, shapes: tuple[int, ...], **options: Any) -> Any:
    # Of the maps, the gradients need the shapes and the dtype.
    maps = [np.broadcast_to(np.zeros((), grad.dtype), shapes[i : i + 4]) for i in range(0, len(shapes), 4)]
    names = [str(i) for i in range(len(maps))]
    pool = cvops.MultiScaleRoIAlign(names, **options)
    return tuple(pool.backward(grad, dict(zip(names, maps, strict=True)), boxes, []).values())


_host_forward = foreign("cvops.multiscale_roi_align", _forward)
_host_backward = foreign("cvops.multiscale_roi_align_backward", _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pooled(options: Any, shapes: Any, maps: list[Any], rois: Any) -> Any:
    result = result_of((rois.shape[0], maps[0].shape[1], *dict(options)["output_size"]), maps[0].dtype)
    return _host_forward(result, rois, *maps, **dict(options))


def _pooled_forward(options: Any, shapes: Any, maps: list[Any], rois: Any) -> Any:
    return _pooled(options, shapes, maps, rois), rois


def _pooled_backward(options: Any, shapes: Any, rois: Any, grad: Any) -> Any:
    results = tuple(result_of(shape, grad.dtype) for shape in shapes)
    gradients = _host_backward(results, grad, rois, shapes=sum(shapes, ()), **dict(options))
    return list(gradients), None


_pooled.defvjp(_pooled_forward, _pooled_backward)
