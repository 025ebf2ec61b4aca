"""The RoI operators of other libraries, on NumPy arrays."""

from __future__ import annotations

import numpy as np

from tests.libraries import require


def torchvision(operator, input, *args, **options):
    """The result of an operator of torchvision for NumPy arrays."""
    function = getattr(require("torchvision").ops, operator)
    return function(_tensor(input), *map(_tensor, args), **options).numpy()


def torchvision_backward(operator, grad, input, *args, **options):
    """The gradient of an operator of torchvision for its input."""
    function = getattr(require("torchvision").ops, operator)
    input = _tensor(input).requires_grad_()
    function(input, *map(_tensor, args), **options).backward(_tensor(grad))
    return input.grad.numpy()


def onnx_roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned):
    """ONNX Runtime's RoiAlign. Its adaptive sampling ratio is 0."""
    inputs = {"X": input, "rois": rois[:, 1:], "batch_indices": rois[:, 0].astype(np.int64)}
    mode = "half_pixel" if aligned else "output_half_pixel"
    height, width = output_size
    return _onnx(
        "RoiAlign",
        inputs,
        output_height=height,
        output_width=width,
        spatial_scale=float(spatial_scale),
        sampling_ratio=max(sampling_ratio, 0),
        coordinate_transformation_mode=mode,
    )


def onnx_roi_pool(input, rois, output_size, spatial_scale):
    """ONNX Runtime's MaxRoiPool."""
    return _onnx("MaxRoiPool", {"X": input, "rois": rois}, pooled_shape=output_size, spatial_scale=float(spatial_scale))


def _tensor(value):
    return require("torch").from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _onnx(operator, inputs, **attributes):
    onnxruntime, onnx = require("onnxruntime"), require("onnx")
    node = onnx.helper.make_node(operator, list(inputs), ["Y"], **attributes)
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    graph = onnx.helper.make_graph([node], operator, values, [onnx.ValueInfoProto(name="Y")])
    # Not the newest versions that `onnx` knows: the runtime is often older than it.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]
