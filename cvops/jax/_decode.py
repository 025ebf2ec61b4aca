"""What heads predict, and boxes, in plain JAX: they run on every device and have gradients of every order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import _decode
from .._box_formulas import decoders
from .._checks import check_batched_boxes, working_dtype
from ._traced import Array, array_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._decode import Letterbox
    from .._types import Number

_decoded, _encoded, _around, _moved = decoders(jnp)


def decode_boxes(
    deltas: Array, anchors: Array, weights: Sequence[Number] = (1, 1, 1, 1), *, clip: Number | None = _decode.CLIP
) -> jax.Array:
    """Boxes from the deltas that a head predicts relative to anchors: `cvops.decode_boxes` in plain JAX.

    Parameters
    ----------
    deltas, anchors, weights, clip
        As in `cvops.decode_boxes`; weights and the clip are Python numbers.

    Returns
    -------
    boxes : array of shape (..., L, 4), dtype of `deltas`

    Raises
    ------
    TypeError, ValueError
        As `cvops.decode_boxes`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.decode_boxes(jnp.array([[0.5, 0, 0, 0]]), jnp.array([[0.0, 0, 10, 20]])).tolist()
    [[5.0, 0.0, 15.0, 20.0]]
    """
    native, other = array_of(deltas, "deltas"), array_of(anchors, "anchors")
    _decode.check_pair(native, "deltas", other, "anchors")
    options = _decode.check_weights(weights), _decode.check_clip(clip)
    one, two = _working(native, other)
    return _finished(_decoded(one, two, *options), native)


def encode_boxes(boxes: Array, anchors: Array, weights: Sequence[Number] = (1, 1, 1, 1)) -> jax.Array:
    """Deltas of boxes relative to anchors: `cvops.encode_boxes` in plain JAX.

    Parameters
    ----------
    boxes, anchors, weights
        As in `cvops.encode_boxes`; the weights are Python numbers.

    Returns
    -------
    deltas : array of shape (..., L, 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.encode_boxes`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.encode_boxes(jnp.array([[5.0, 0, 15, 20]]), jnp.array([[0.0, 0, 10, 20]])).tolist()
    [[0.5, 0.0, 0.0, 0.0]]
    """
    native, other = array_of(boxes, "boxes"), array_of(anchors, "anchors")
    _decode.check_pair(native, "boxes", other, "anchors")
    one, two = _working(native, other)
    return _finished(_encoded(one, two, _decode.check_weights(weights)), native)


def distance_to_boxes(points: Array, distances: Array) -> jax.Array:
    """Boxes from the distances of points to the four sides: `cvops.distance_to_boxes` in plain JAX.

    Parameters
    ----------
    points, distances
        As in `cvops.distance_to_boxes`.

    Returns
    -------
    boxes : array of shape (..., L, 4), dtype of `distances`

    Raises
    ------
    TypeError, ValueError
        As `cvops.distance_to_boxes`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.distance_to_boxes(jnp.array([[4.0, 4.0]]), jnp.array([[1.0, 2, 3, 4]])).tolist()
    [[3.0, 2.0, 7.0, 8.0]]
    """
    native, of_points = array_of(distances, "distances"), array_of(points, "points")
    _decode.check_points(of_points, native)
    one, two = _working(of_points, native)
    return _finished(_around(one, two), native)


def scale_boxes(
    boxes: Array, from_size: Sequence[Number], to_size: Sequence[Number], *, letterbox: Letterbox = False
) -> jax.Array:
    """Boxes in the input of a network as boxes in the image: `cvops.scale_boxes` in plain JAX.

    Parameters
    ----------
    boxes, from_size, to_size, letterbox
        As in `cvops.scale_boxes`; sizes are Python numbers.

    Returns
    -------
    scaled : array of shape (..., 4), dtype of `boxes`

    Raises
    ------
    TypeError, ValueError
        As `cvops.scale_boxes`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import cvops.jax
    >>> cvops.jax.scale_boxes(jnp.array([[0.0, 80, 640, 560]]), (640, 640), (240, 320), letterbox=True).tolist()
    [[0.0, 0.0, 320.0, 240.0]]
    """
    native = array_of(boxes, "boxes")
    check_batched_boxes(native, "boxes")
    fit = _decode.check_fit(from_size, to_size, letterbox)
    (working,) = _working(native)
    return _finished(_moved(working, fit), native)


def _working(*arrays: Any) -> list[Any]:
    """The arrays in working precision, as far as JAX has it."""
    dtype = jax.dtypes.canonicalize_dtype(working_dtype(*arrays))
    return [array.astype(dtype) for array in arrays]


def _finished(values: Any, of_dtype: Any) -> Any:
    return values.astype(jax.dtypes.canonicalize_dtype(_decode.result_dtype(of_dtype)))
