"""How each peer is called. A maker prepares the inputs in the peer's own form, untimed, and returns the call to time.

Peers are optional: `sides` leaves out what is not installed. To add one for an operator, write its maker and name it
in the operator's table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np

import cvops
from tests.data import Array

from .harness import Call

Maker = Callable[..., Call]

# The packages without which a peer cannot be called.
PACKAGES = {
    "torchvision": ["torchvision"],
    "ONNX Runtime": ["onnxruntime", "onnx"],
    "OpenVINO": ["openvino"],
    "OpenCV": ["cv2"],
    "powerboxes": ["powerboxes"],
    "lsnms": ["lsnms"],
    "ensemble-boxes": ["ensemble_boxes"],
    "SAHI": ["sahi"],
}


def installed(peer: str) -> bool:
    return all(find_spec(package) for package in PACKAGES[peer])


def sides(makers: Mapping[str, Maker], *inputs: Any, but: Collection[str] = ()) -> dict[str, Call]:
    """The call of each installed peer for these inputs, except for the peers named in `but`."""
    return {peer: make(*inputs) for peer, make in makers.items() if peer not in but and installed(peer)}


def set_threads(count: int) -> None:
    """Let cvops, the peers and NumPy's BLAS use `count` threads each.

    powerboxes, lsnms, ensemble-boxes and SAHI have only one.
    """
    cvops.set_num_threads(count)
    if installed("torchvision"):
        import torch

        torch.set_num_threads(count)
    if installed("OpenCV"):
        import cv2

        cv2.setNumThreads(count)
    if find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_limits

        threadpool_limits(count, "blas")


# ------------------------------------------------------------------------------------------- any operator of a peer


def with_torchvision(operator: str, *args: Any) -> Call:
    """`torchvision.ops.<operator>` with every array as a tensor on the same memory."""
    import torch
    import torchvision

    function = getattr(torchvision.ops, operator)
    return partial(function, *(torch.from_numpy(arg) if isinstance(arg, np.ndarray) else arg for arg in args))


def with_torchvision_gradient(forward: Call, maps: Sequence[Any], grad: Array) -> Call:
    """The gradient of `forward`, a torchvision call on the tensors `maps` (which this makes require one), for each."""
    import torch

    for tensor in maps:
        tensor.requires_grad_()
    return partial(torch.autograd.grad, forward(), maps, torch.from_numpy(grad), retain_graph=True)


def with_onnxruntime(operator: str, attributes: Mapping[str, Any] = MappingProxyType({}), **inputs: Array) -> Call:
    """A session that holds one node. `inputs` are in the operator's order; the call returns the list of outputs."""
    import onnxruntime
    from onnx import ValueInfoProto, helper

    node = helper.make_node(operator, list(inputs), ["result"], **attributes)
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    result = ValueInfoProto(name="result")  # the runtime infers type and shape
    graph = helper.make_graph([node], operator, values, [result])
    # Not the newest versions that `onnx` knows: the runtime is often older than it.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cvops.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return partial(session.run, None, inputs)


# ------------------------------------------------------------------------------------------------- nms, batched_nms


def _onnxruntime_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    run = _onnxruntime_selection(boxes, scores[None], iou_threshold)
    return lambda: run()[0][:, 2]


def _onnxruntime_batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float) -> Call:
    run = _onnxruntime_selection(boxes, _by_class(scores, idxs), iou_threshold)

    def call() -> Array:
        selected = run()[0][:, 2]  # class after class
        ranked: Array = selected[np.argsort(-scores[selected], kind="stable")]
        return ranked

    return call


def _by_class(scores: Array, idxs: Array) -> Array:
    """A row of scores for each class, 0 where a box is not of it."""
    scores_by_class = np.zeros((idxs.max() + 1, len(scores)), np.float32)
    scores_by_class[idxs, np.arange(len(scores))] = scores
    return scores_by_class


def _onnxruntime_selection(boxes: Array, scores_by_class: Array, iou_threshold: float) -> Call:
    return with_onnxruntime(
        "NonMaxSuppression",
        boxes=boxes[None],
        scores=scores_by_class[None],
        max_output_boxes_per_class=np.array([len(boxes)]),
        iou_threshold=np.array([iou_threshold], np.float32),
        score_threshold=np.array([0], np.float32),  # drops the classes that a box is not of
    )


def _openvino_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    return _openvino_selection(boxes, scores[None], iou_threshold)


def _openvino_batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float) -> Call:
    return _openvino_selection(boxes, _by_class(scores, idxs), iou_threshold)


def _openvino_selection(boxes: Array, scores_by_class: Array, iou_threshold: float) -> Call:
    import openvino

    inputs = boxes[None], scores_by_class[None]
    nodes = [openvino.opset9.parameter(list(array.shape), array.dtype.type) for array in inputs]
    threshold, least_score = np.float32(iou_threshold), np.float32(0)
    node = openvino.opset9.non_max_suppression(*nodes, np.int64(len(boxes)), threshold, least_score)
    model = openvino.Model([node.output(0)], nodes)
    options = {"INFERENCE_NUM_THREADS": cvops.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    for i, array in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(array))

    def call() -> Any:
        request.infer()
        return request.get_output_tensor(0).data[:, 2].copy()

    return call


def _opencv_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    import cv2

    return partial(cv2.dnn.NMSBoxes, _xywh(boxes), scores.tolist(), 0.0, iou_threshold)


def _opencv_batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float) -> Call:
    import cv2

    return partial(cv2.dnn.NMSBoxesBatched, _xywh(boxes), scores.tolist(), idxs.tolist(), 0.0, iou_threshold)


def _xywh(boxes: Array) -> list[tuple[float, ...]]:
    """Boxes as OpenCV takes them: corner and size. In tuples, which its binding reads faster than an array."""
    corners = boxes.astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    return [tuple(box) for box in corners.tolist()]


def _lsnms_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    import lsnms

    return partial(lsnms.nms, boxes, scores, iou_threshold)


def _lsnms_batched_nms(boxes: Array, scores: Array, idxs: Array, iou_threshold: float) -> Call:
    import lsnms

    return partial(lsnms.nms, boxes, scores, iou_threshold, class_ids=idxs)


def _powerboxes_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    import powerboxes

    return partial(powerboxes.nms, boxes.astype(np.float64), scores.astype(np.float64), iou_threshold, 0.0)


def _ensemble_boxes_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    from ensemble_boxes.ensemble_boxes_nms import nms_float_fast  # what its nms calls for each class, without copies

    return partial(nms_float_fast, boxes, scores, iou_threshold)


def _sahi_nms(boxes: Array, scores: Array, iou_threshold: float) -> Call:
    from sahi.postprocess.combine import nms

    return partial(nms, np.column_stack([boxes, scores, np.zeros_like(scores)]), "IOU", iou_threshold)


NMS: dict[str, Maker] = {
    "torchvision": partial(with_torchvision, "nms"),
    "ONNX Runtime": _onnxruntime_nms,
    "OpenVINO": _openvino_nms,
    "OpenCV": _opencv_nms,
    "powerboxes": _powerboxes_nms,
    "lsnms": _lsnms_nms,
    "ensemble-boxes": _ensemble_boxes_nms,
    "SAHI": _sahi_nms,
}
BATCHED_NMS: dict[str, Maker] = {
    "torchvision": partial(with_torchvision, "batched_nms"),
    "ONNX Runtime": _onnxruntime_batched_nms,
    "OpenVINO": _openvino_batched_nms,
    "OpenCV": _opencv_batched_nms,
    "lsnms": _lsnms_batched_nms,
}


# --------------------------------------------------------------------------------------------------- detection heads


def _torchvision_multiclass_nms(
    boxes: Array, scores: Array, floor: float, iou_threshold: float, most: int | None
) -> Call:
    import torch

    return partial(
        detections_by_torchvision, torch.from_numpy(boxes), torch.from_numpy(scores), floor, iou_threshold, most
    )


def detections_by_torchvision(boxes: Any, scores: Any, floor: float, iou_threshold: float, most: int | None) -> Any:
    """Rows (image, box, class) by a loop over the images of tensors (N, L, 4) and (N, C, L), as detectors have it."""
    import torch
    from torchvision.ops import batched_nms

    rows = []
    for n, (own, values) in enumerate(zip(boxes, scores, strict=True)):
        label, box = torch.where(values > floor)
        score = values[label, box]
        if most is not None and len(score) > most:
            score, best = score.topk(most)
            label, box = label[best], box[best]
        keep = batched_nms(own[box], score, label, iou_threshold)[:300]
        rows.append(torch.stack([torch.full_like(keep, n), box[keep], label[keep]], 1))
    return torch.cat(rows)


def _onnxruntime_multiclass_nms(
    boxes: Array, scores: Array, floor: float, iou_threshold: float, most: int | None
) -> Call:
    run = with_onnxruntime(
        "NonMaxSuppression",
        boxes=boxes,
        scores=scores,
        limit=np.array([300]),
        threshold=np.array([iou_threshold], np.float32),
        floor=np.array([floor], np.float32),
    )
    return lambda: run()[0][:, [0, 2, 1]]


def _openvino_multiclass_nms(boxes: Array, scores: Array, floor: float, iou_threshold: float, most: int | None) -> Call:
    """The limit of candidates is one for each class there, and is not used."""
    import openvino

    nodes = [openvino.opset9.parameter(list(array.shape), array.dtype.type) for array in (boxes, scores)]
    node = openvino.opset9.multiclass_nms(
        *nodes, sort_result_type="score", output_type="i64", iou_threshold=iou_threshold, score_threshold=floor,
        keep_top_k=300,
    )  # fmt: skip
    model = openvino.Model([node.output(0), node.output(1), node.output(2)], nodes)
    options = {"INFERENCE_NUM_THREADS": cvops.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    for i, array in enumerate((boxes, scores)):
        request.set_input_tensor(i, openvino.Tensor(array))
    length = boxes.shape[1]

    def call() -> Array:
        request.infer()
        rows, places, counts = (request.get_output_tensor(i).data for i in range(3))
        total = int(counts.sum())
        place = places[:total, 0]
        return np.stack([place // length, place % length, rows[:total, 0].astype(np.int64)], 1)

    return call


MULTICLASS_NMS: dict[str, Maker] = {
    "torchvision": _torchvision_multiclass_nms,
    "ONNX Runtime": _onnxruntime_multiclass_nms,
    "OpenVINO": _openvino_multiclass_nms,
}


def _torchvision_decode_boxes(deltas: Array, anchors: Array) -> Call:
    import torch
    from torchvision.models.detection._utils import BoxCoder

    return partial(BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single, torch.from_numpy(deltas), torch.from_numpy(anchors))


DECODE_BOXES: dict[str, Maker] = {"torchvision": _torchvision_decode_boxes}


# ----------------------------------------------------------------------------- deform_conv2d, FeaturePyramidNetwork


def _torchvision_deform_conv2d(arrays: dict[str, Array]) -> Call:
    given = [arrays[name] for name in ("input", "offset", "weight", "bias")]
    return with_torchvision("deform_conv2d", *given, 1, 1, 1, arrays["mask"])


def _torchvision_deform_conv2d_backward(grad: Array, arrays: dict[str, Array]) -> Call:
    import torch
    import torchvision

    names = ("input", "offset", "weight", "bias", "mask")
    tensors = {name: torch.from_numpy(arrays[name]) for name in names}
    forward = partial(torchvision.ops.deform_conv2d, **tensors, padding=1)
    return with_torchvision_gradient(forward, list(tensors.values()), grad)


def _onnxruntime_deform_conv2d(arrays: dict[str, Array]) -> Call:
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    inputs = {name: arrays[name] for name in ("input", "weight", "offset", "bias", "mask")}
    run = with_onnxruntime("DeformConv", attributes, **inputs)
    return lambda: run()[0]


def _torchvision_feature_pyramid_network(maps: dict[str, Array], parameters: dict[str, Array]) -> Call:
    import torch
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

    outputs = parameters["layer_blocks.0.0.bias"].shape[0]
    network = FeaturePyramidNetwork([array.shape[1] for array in maps.values()], outputs, LastLevelMaxPool())
    network.load_state_dict({name: torch.from_numpy(array) for name, array in parameters.items()})
    tensors = {name: torch.from_numpy(array) for name, array in maps.items()}

    def call() -> Any:
        with torch.inference_mode():
            return network(dict(tensors))["p2"]

    return call


DEFORM_CONV2D: dict[str, Maker] = {
    "torchvision": _torchvision_deform_conv2d,
    "ONNX Runtime": _onnxruntime_deform_conv2d,
}
DEFORM_CONV2D_BACKWARD: dict[str, Maker] = {"torchvision": _torchvision_deform_conv2d_backward}
FEATURE_PYRAMID_NETWORK: dict[str, Maker] = {"torchvision": _torchvision_feature_pyramid_network}
