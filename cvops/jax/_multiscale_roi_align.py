"""Pooling from a feature pyramid in JAX programs, and its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import jax

import cvops

from .. import _multiscale_roi_align as plain
from .._checks import ADAPTIVE, check_boxes_of_images, integer, pair, positive
from ._ffi import differentiable
from ._roi import joined
from ._traced import TRACED, Array, Rois

if TYPE_CHECKING:
    from .._types import Integer, Ints, Number


def multiscale_roi_align(
    features: Sequence[Array],
    boxes: Rois,
    output_size: Ints,
    *,
    scales: Sequence[Number],
    sampling_ratio: Integer = ADAPTIVE,
    canonical_scale: Number = 224,
    canonical_level: Integer = 4,
    aligned: bool = False,
) -> jax.Array:
    """Pool each box from the map of its size: `cvops.multiscale_roi_align`, differentiable by `features`.

    Parameters
    ----------
    features, boxes, output_size, scales, sampling_ratio, canonical_scale, canonical_level, aligned
        As in `cvops.multiscale_roi_align`; bfloat16 too. `boxes` have no gradient: it is 0.

    Returns
    -------
    pooled : array of shape (K, C, output height, output width), dtype of the maps

    Raises
    ------
    TypeError, ValueError
        As `cvops.multiscale_roi_align`; a wrong image index when the program runs.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> maps, boxes = [jnp.zeros((1, 8, 64, 64)), jnp.zeros((1, 8, 32, 32))], jnp.array([[0, 0.0, 0.0, 20.0, 30.0]])
    >>> cvops.jax.multiscale_roi_align(maps, boxes, 7, scales=[0.25, 0.125]).shape
    (1, 8, 7, 7)
    """
    options = plain.Options(sampling_ratio, canonical_scale, canonical_level, aligned)
    maps = plain.checked_maps(plain.named_maps(features), TRACED)
    return _pool(maps, boxes, output_size, scales, options)


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
        options = plain.Options(self.sampling_ratio, self.canonical_scale, self.canonical_level, self.aligned)
        maps = plain.checked_maps(plain.maps_by_name(features, self.featmap_names), TRACED)
        scales = self.scales
        if scales is None:
            scales = plain.scales_of([array.shape[2] for array in maps], image_shapes)
        return _pool(maps, boxes, self.output_size, scales, options)


def _pool(maps: list[Any], boxes: Any, output_size: Any, scales: Any, options: plain.Options) -> Any:
    if isinstance(boxes, (list, tuple)):
        check_boxes_of_images(boxes, len(maps[0]))
    pyramid = plain.arranged([array.shape for array in maps], joined(boxes), scales, options, maps[0], TRACED)
    return _pooled(
        tuple(maps),
        (pyramid.rois,),
        output_size=pair(output_size, "output_size"),
        scales=tuple(positive(scale, "scales") for scale in scales),
        sampling_ratio=pyramid.sampling_ratio,
        canonical_scale=positive(options.canonical_scale, "canonical_scale"),
        canonical_level=integer(options.canonical_level, "canonical_level"),
        aligned=pyramid.aligned,
    )


def _forward(*arrays: Any, **options: Any) -> Any:
    *maps, boxes = arrays
    return cvops.multiscale_roi_align(maps, boxes, **options)


def _backward(grad: Any, boxes: Any, *, input_shapes: tuple[int, ...], output_size: Any, **options: Any) -> Any:
    by_map = [input_shapes[i : i + 4] for i in range(0, len(input_shapes), 4)]
    return tuple(cvops.multiscale_roi_align_backward(grad, boxes, by_map, **options))


def _shape(inputs: Any, others: Any, *, output_size: tuple[int, int], **options: Any) -> tuple[int, ...]:
    return len(others[0]), inputs[0].shape[1], *output_size


_pooled = differentiable("cvops.multiscale_roi_align", _forward, _backward, _shape)
