"""Pooling from a feature pyramid in JAX programs, and its gradients."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import cvops

from .._checks import check_boxes_of_images, flag, pair, ratio, strings
from ._ffi import call
from ._roi import joined
from ._traced import TRACED, Array, Rois, array_of, result_of

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

        Raises
        ------
        KeyError, TypeError, ValueError
            As the call of `cvops.MultiScaleRoIAlign`; a wrong image index when the program runs.
        """
        options: dict[str, Any] = {
            "featmap_names": strings(self.featmap_names, "featmap_names"),
            "output_size": pair(self.output_size, "output_size"),
            "sampling_ratio": ratio(self.sampling_ratio, "sampling_ratio"), "canonical_scale": self.canonical_scale,
            "canonical_level": self.canonical_level, "aligned": flag(self.aligned, "aligned"), "scales": self.scales,
        }  # fmt: skip
        pool = cvops.MultiScaleRoIAlign(**options)
        given, rois = pool._maps(features), joined(boxes)
        pyramid = pool._pyramid(given, rois, image_shapes, TRACED)
        if isinstance(boxes, (list, tuple)):
            check_boxes_of_images(boxes, len(pyramid.maps[0]))
        # The scales were found just now; the host needs no image shapes.
        found = dict(zip(pyramid.names, pyramid.scales, strict=True))
        options["scales"] = [found[name] for name in self.featmap_names]
        maps = [array_of(array, name) for name, array in given.items()]
        return _of_pyramid(json.dumps(options), maps, pyramid.rois)


def _host_pyramid(boxes: Any, options: dict[str, Any], grad: Any = None, **maps: Any) -> Any:
    """What XLA calls: the pooled boxes, or the gradients of the maps."""
    pool = cvops.MultiScaleRoIAlign(**options)
    features = dict(zip(options["featmap_names"], maps.values(), strict=True))
    if grad is None:
        return pool(features, boxes, [])
    return tuple(pool.backward(grad, features, boxes, []).values())


def _named_maps(maps: list[Any]) -> dict[str, Any]:
    return {f"map{i}": array for i, array in enumerate(maps)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _of_pyramid(options: str, maps: list[Any], rois: Any) -> Any:
    size = json.loads(options)["output_size"]
    result = result_of((len(rois), maps[0].shape[1], *size), maps[0].dtype)
    arrays = {"boxes": rois, **_named_maps(maps)}
    return call("cvops.jax._pyramid:_host_pyramid", result, arrays, f'{{"options": {options}}}')


def _of_pyramid_forward(options: str, maps: list[Any], rois: Any) -> Any:
    return _of_pyramid(options, maps, rois), (maps, rois)


def _of_pyramid_backward(options: str, residuals: Any, grad: Any) -> Any:
    maps, rois = residuals
    results = tuple(result_of(array.shape, array.dtype) for array in maps)
    arrays = {"boxes": rois, "grad": grad, **_named_maps(maps)}
    gradients = call("cvops.jax._pyramid:_host_pyramid", results, arrays, f'{{"options": {options}}}')
    return list(gradients), jnp.zeros_like(rois)


_of_pyramid.defvjp(_of_pyramid_forward, _of_pyramid_backward)
