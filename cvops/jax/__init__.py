"""The operators inside JAX programs: under jax.jit, jax.grad, jax.vmap and their compositions, on the CPU.

The functions have the names and arguments of those of `cvops`, and their answers. XLA calls the CPU backend with its
own buffers: arguments are not copied, and a result is copied once, into the buffer that XLA has for it. What can be
checked from shapes and dtypes is checked when JAX traces, with the errors of `cvops`; a wrong image index shows when
the program runs.

- Lengths are part of the program, so `nms`, `batched_nms` and `multiclass_nms` need `max_output` and tell how many
  there are. `remove_small_boxes`, whose result has any length, is not here; nor are `make_points` and `make_anchors`:
  those of `cvops` give constants to any program.
- Gradients are those of the ``*_backward`` functions; there are none for boxes (their cotangents are zero), none of
  second order, and none in forward mode. The box measures and decoders are plain JAX: they have all of these, on every
  device.
- Options are Python or NumPy numbers, and part of the program.
- Under jax.shard_map each device computes with what it has: results vary along the axes of the mesh that an argument
  varies along, and gradients of what devices share are summed over them.
- Gradients of the RoI operators keep the boxes, and roi_pool where its maxima were, but not the maps.
- Under jax.vmap an operator runs once for each element, all in one call of XLA.
- While 64-bit types are off in JAX, float64 is float32 and int64 is int32, indices included.
- On a GPU the operators do not run within jax.jit: XLA says that it has no handler "cvops" for CUDA. Outside, the
  functions of `cvops` take JAX arrays on a GPU without a copy.

jax.export writes programs that another process runs, which must import cvops.jax before it does. It wants to be told
the functions that they call: "cvops." and the name of the operator, and for gradients the same with "_backward". These
names never change; the arguments behind them may, from one version of cvops to the next.

>>> import jax
>>> import jax.numpy as jnp
>>> import cvops.jax
>>> pool = jax.jit(lambda features, boxes: cvops.jax.roi_align(features, boxes, output_size=2))
>>> pool(jnp.ones((1, 3, 8, 8)), jnp.array([[0, 1.0, 1.0, 5.0, 5.0]])).shape
(1, 3, 2, 2)

>>> import jax.export
>>> allowed = [jax.export.DisabledSafetyCheck.custom_call("cvops.roi_align")]
>>> arguments = jnp.ones((1, 3, 8, 8)), jnp.array([[0, 1.0, 1.0, 5.0, 5.0]])
>>> written = jax.export.export(pool, disabled_checks=allowed)(*arguments).serialize()
>>> jax.export.deserialize(written).call(*arguments).shape
(1, 3, 2, 2)
"""

from ._functions import (
    MultiScaleRoIAlign,
    batched_nms,
    box_area,
    box_convert,
    box_iou,
    clip_boxes_to_image,
    complete_box_iou,
    decode_boxes,
    deform_conv2d,
    distance_box_iou,
    distance_to_boxes,
    encode_boxes,
    generalized_box_iou,
    masks_to_boxes,
    multiclass_nms,
    multiscale_roi_align,
    nms,
    ps_roi_align,
    ps_roi_pool,
    roi_align,
    roi_pool,
    scale_boxes,
)

__all__ = [
    "MultiScaleRoIAlign",
    "batched_nms",
    "box_area",
    "box_convert",
    "box_iou",
    "clip_boxes_to_image",
    "complete_box_iou",
    "decode_boxes",
    "deform_conv2d",
    "distance_box_iou",
    "distance_to_boxes",
    "encode_boxes",
    "generalized_box_iou",
    "masks_to_boxes",
    "multiclass_nms",
    "multiscale_roi_align",
    "nms",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "scale_boxes",
]
