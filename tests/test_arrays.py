"""The seam: which arguments are arrays, what is refused, and how a result goes back to the caller's library."""

from __future__ import annotations

import contextlib
import fractions
import functools
import gc
import importlib
import re
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest

import cvops
from cvops import _arrays
from tests import compare, libraries, reference
from tests.libraries import layout, require, to_numpy

BOXES = np.array([[0, 0, 8, 9], [1, 0, 8, 9], [20, 5, 41, 9], [2, 3, 5, 4], [20, 6, 40, 9]], np.float32)
SCORES = np.array([0.5, 0.75, 0.25, 1, 0.125], np.float32)
IDXS = np.array([3, 3, -1, 3, -1])
MASKS = (np.arange(60).reshape(3, 4, 5) % 13 == 6).astype(np.uint8)

# The arguments of an ordinary call of every operator; the function of this name in reference.py gives the answer.
OPERATORS = {
    "nms": (BOXES, SCORES, 0.5),
    "batched_nms": (BOXES, SCORES, IDXS, 0.5),
    "box_area": (BOXES,),
    "box_iou": (BOXES, BOXES[1:4]),
    "generalized_box_iou": (BOXES, BOXES[1:4]),
    "distance_box_iou": (BOXES, BOXES[1:4]),
    "complete_box_iou": (BOXES, BOXES[1:4]),
    "box_convert": (BOXES, "xyxy", "cxcywh"),
    "clip_boxes_to_image": (BOXES, (7, 30)),
    "remove_small_boxes": (BOXES, 4),
    "masks_to_boxes": (MASKS,),
}
# The tests that take each class over all array libraries; test_operators.py does so with functions.
CLASSES = {
    "test_roi_inputs": {"RoIAlign", "RoIPool", "PSRoIAlign", "PSRoIPool"},
    "test_pyramid": {"MultiScaleRoIAlign"},
    "test_deform_conv_layer": {"DeformConv2d"},
    "test_fpn": {"FeaturePyramidNetwork", "LastLevelMaxPool", "LastLevelP6P7"},
}

every_operator = pytest.mark.parametrize("operator", OPERATORS)


def arguments(operator, convert):
    """The arguments of the ordinary call, each array passed through `convert`."""
    return [convert(value) if isinstance(value, np.ndarray) else value for value in OPERATORS[operator]]


def check(operator, convert, dtype="f4"):
    """Call the operator on arrays made by `convert`, the float32 ones in `dtype`, and compare with the reference."""
    values = arguments(operator, lambda value: value.astype(dtype) if value.dtype == "f4" else value)
    inputs = [convert(value) if isinstance(value, np.ndarray) else value for value in values]
    got, want = getattr(cvops, operator)(*inputs), getattr(reference, operator)(*values)
    (compare.same if want.dtype.kind == "i" else compare.close)(got, want, inputs[0])


def test_classes_are_all_tested():
    assert {name for name in cvops.__all__ if isinstance(getattr(cvops, name), type)} == set().union(*CLASSES.values())


@every_operator
def test_every_library_gets_its_own_arrays_back(array, operator):
    check(operator, array)


# ------------------------------------------------------------------------------------------------- NumPy in any form


class Plain(np.ndarray):
    """A subclass that adds nothing."""


def memory_mapped(values, folder):
    array = np.lib.format.open_memmap(folder / f"{id(values)}.npy", "w+", values.dtype, values.shape)
    array[...] = values
    return array


def field_of_packed_records(values, _):
    records = np.zeros(values.shape, [("first", "i1"), ("second", values.dtype)])
    records["second"] = values
    return records["second"]


FORMS = {
    "Fortran order": lambda values, _: np.asfortranarray(values),
    "reversed": lambda values, _: np.ascontiguousarray(np.flip(values))[(slice(None, None, -1),) * values.ndim],
    "big-endian": lambda values, _: values.astype(values.dtype.newbyteorder(">")),
    "unaligned": lambda values, _: np.frombuffer(b"-" + values.tobytes(), values.dtype, offset=1).reshape(values.shape),
    "field of packed records": field_of_packed_records,
    "memory-mapped": memory_mapped,
    "subclass": lambda values, _: values.view(Plain),
}


@every_operator
@pytest.mark.parametrize("form", FORMS)
def test_numpy_arrays_of_any_form(operator, form, tmp_path):
    check(operator, lambda values: FORMS[form](values, tmp_path))


def test_arrays_of_stride_zero():
    boxes = np.broadcast_to(BOXES[0], (5, 4))
    compare.same(cvops.nms(boxes, SCORES, 0.5), np.array([3]), boxes)
    compare.same(cvops.nms(BOXES, np.broadcast_to(SCORES[0], 5), 0.5), np.array([0, 2, 3]), boxes)


# ----------------------------------------------------------------------------------------------------------- results


def assert_apart(result, inputs):
    """On a GPU only by where they begin."""
    for value in inputs:
        assert layout(result)[0] != layout(value)[0]
        assert not np.shares_memory(to_numpy(result), to_numpy(value))


@every_operator
def test_inputs_are_not_written_and_not_shared_with_the_result(array, operator):
    inputs = arguments(operator, array)
    arrays = [value for value in inputs if hasattr(value, "__dlpack__")]
    before = [to_numpy(value).tobytes() for value in arrays]
    result = getattr(cvops, operator)(*inputs)
    assert [to_numpy(value).tobytes() for value in arrays] == before
    assert_apart(result, arrays)


@pytest.mark.parametrize(
    ("operator", "args"), [("box_convert", ("xywh", "xywh")), ("clip_boxes_to_image", ((99, 99),))]
)
def test_a_result_equal_to_the_input_is_a_copy(array, operator, args):
    boxes = array(BOXES)
    got = getattr(cvops, operator)(boxes, *args)
    compare.same(got, BOXES, boxes)
    assert_apart(got, [boxes])


@every_operator
def test_numpy_results_are_writable(operator):
    result = getattr(cvops, operator)(*arguments(operator, libraries.CONVERTERS["numpy-readonly"]))
    result[...] = 1


@every_operator
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_results_go_back_without_a_copy(monkeypatch, library, operator):
    jax, given = library == "jax" and require("jax"), []
    module = jax.numpy if jax else require("torch")
    from_dlpack = module.from_dlpack
    monkeypatch.setattr(module, "from_dlpack", lambda native: given.append(native) or from_dlpack(native))
    with jax.enable_x64(True) if jax else contextlib.nullcontext():  # else it has to convert int64
        result = getattr(cvops, operator)(*arguments(operator, module.asarray))
    address = result.unsafe_buffer_pointer() if jax else result.data_ptr()
    assert [native.ctypes.data for native in given] == [address]


def test_results_outlive_what_made_them(array):
    results = [cvops.box_iou(array(BOXES), array(BOXES)) for _ in range(50)]
    gc.collect()
    want, like = reference.box_iou(BOXES, BOXES), array(BOXES)
    for result in results:
        compare.close(result, want, like)


def test_jax_with_64_bit_types(jax):
    with jax.enable_x64(True):
        boxes, scores = jax.numpy.asarray(BOXES.astype("f8")), jax.numpy.asarray(SCORES.astype("f8"))
        assert boxes.dtype == "float64"
        compare.same(cvops.nms(boxes, scores, 0.5), reference.nms(BOXES, SCORES, 0.5), boxes)
        compare.close(cvops.box_iou(boxes, boxes), reference.box_iou(BOXES.astype("f8"), BOXES.astype("f8")), boxes)


# ------------------------------------------------------------------------------------------- libraries and devices


@pytest.mark.parametrize("second", libraries.PRESENT)
def test_the_result_follows_the_first_array(array, second):
    boxes, scores = array(BOXES), libraries.CONVERTERS[second](SCORES)
    if boxes.__dlpack_device__() != scores.__dlpack_device__():
        with pytest.raises(ValueError, match=r"`boxes` is on .* and `scores` is on .*: move them to one device"):
            cvops.nms(boxes, scores, 0.5)
        return
    compare.same(cvops.nms(boxes, scores, 0.5), reference.nms(BOXES, SCORES, 0.5), boxes)


@pytest.fixture
def own_library(monkeypatch):
    """A function that makes a small array library and returns its array type.

    `from_dlpack` is offered by the root module of the type, by its `__array_namespace__`, by both or by neither.
    """

    def make(*, root=False, namespace=False):
        class Array:
            def __init__(self, values, place=(1, 0), origin=None):
                self.values, self.place, self.origin, self.exports = values, place, origin, 0

            def __dlpack_device__(self):
                return self.place

            def __dlpack__(self, **options):
                self.exports += 1
                return self.values.__dlpack__(**options)

        def from_dlpack(origin):
            return lambda exporter: Array(np.from_dlpack(exporter), origin=origin)

        module = types.ModuleType("ownlib")
        if root:
            module.from_dlpack = from_dlpack("root")
        monkeypatch.setitem(sys.modules, "ownlib", module)
        Array.__module__ = "ownlib.core.arrays"
        if namespace:
            Array.__array_namespace__ = lambda self, api_version=None: types.SimpleNamespace(
                **({"from_dlpack": from_dlpack("namespace")} if namespace == "with from_dlpack" else {})
            )
        return Array

    return make


@pytest.mark.parametrize(
    ("root", "namespace", "origin"),
    [
        (True, False, "root"),
        (True, "without from_dlpack", "root"),
        (True, "with from_dlpack", "namespace"),
        (False, "with from_dlpack", "namespace"),
    ],
)
def test_the_way_back(own_library, root, namespace, origin):
    Array = own_library(root=root, namespace=namespace)
    got = cvops.nms(Array(BOXES), Array(SCORES), 0.5)
    assert (type(got), got.origin) == (Array, origin)
    np.testing.assert_array_equal(got.values, reference.nms(BOXES, SCORES, 0.5))


@every_operator
@pytest.mark.parametrize("namespace", [False, "without from_dlpack"])
def test_no_way_back_is_refused_before_any_work(own_library, operator, namespace):
    Array = own_library(namespace=namespace)
    inputs = arguments(operator, Array)
    with pytest.raises(TypeError, match=r"`(boxes|boxes1|masks)`.* Array has no from_dlpack"):
        getattr(cvops, operator)(*inputs)
    assert not any(value.exports for value in inputs if isinstance(value, Array))


def test_only_the_first_array_needs_a_way_back(own_library):
    scores = own_library()(SCORES)
    compare.same(cvops.nms(BOXES, scores, 0.5), reference.nms(BOXES, SCORES, 0.5), BOXES)


@pytest.mark.parametrize("device", [(1, 0), (3, 0), (3, 1)])
def test_host_and_pinned_host_memory(own_library, device):
    Array = own_library(root=True)
    got = cvops.nms(Array(BOXES, device), Array(SCORES), 0.5)
    np.testing.assert_array_equal(got.values, reference.nms(BOXES, SCORES, 0.5))


DEVICES = {
    (4, 0): "opencl:0",
    (7, 0): "vulkan:0",
    (8, 0): "metal:0",
    (10, 2): "rocm:2",
    (14, 0): "oneapi:0",
    (99, 3): "99:3",
}


@pytest.mark.parametrize("device", DEVICES, ids=DEVICES.values())
@every_operator
def test_devices_without_a_backend(own_library, operator, device):
    Array = own_library(root=True)
    inputs = arguments(operator, lambda values: Array(values, device))
    with pytest.raises(ValueError, match=rf"`(boxes|boxes1|masks)` is on .*{DEVICES[device]}"):
        getattr(cvops, operator)(*inputs)
    assert not any(value.exports for value in inputs if isinstance(value, Array))


@pytest.mark.parametrize("device", [(2, 0), (2, 1), (13, 0)])
def test_cuda_without_cupy(own_library, monkeypatch, device):
    for name in ("cvops_cuda", "cvops_cuda._device"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_arrays, "_load", importlib.import_module)  # not what an earlier call has loaded
    Array = own_library(root=True)
    with pytest.raises(ImportError) as raised:
        cvops.nms(Array(BOXES, device), Array(SCORES, device), 0.5)
    assert str(raised.value) == (
        "CUDA arrays need CuPy 14.2 or newer: "
        "pip install 'cupy-cuda13x[ctk]' (CUDA 13) or 'cupy-cuda12x[ctk]' (CUDA 12)"
    )


@pytest.mark.parametrize(
    ("boxes", "scores", "text"),
    [
        ((1, 0), (2, 0), "`boxes` is on cpu and `scores` is on cuda:0"),
        ((2, 3), (1, 0), "`boxes` is on cuda:3 and `scores` is on cpu"),
        ((2, 0), (2, 1), "`boxes` is on cuda:0 and `scores` is on cuda:1"),
        ((13, 0), (2, 1), "`boxes` is on cuda:0 and `scores` is on cuda:1"),
        ((3, 0), (8, 0), "`boxes` is on cpu and `scores` is on metal:0"),
    ],
)
def test_arrays_on_two_devices(own_library, boxes, scores, text):
    Array = own_library(root=True)
    with pytest.raises(ValueError, match=text):
        cvops.nms(Array(BOXES, boxes), Array(SCORES, scores), 0.5)
    with pytest.raises(ValueError, match=text):
        cvops.batched_nms(Array(BOXES, boxes), Array(SCORES, scores), Array(IDXS, boxes), 0.5)
    with pytest.raises(ValueError, match=text.replace("scores", "idxs")):
        cvops.batched_nms(Array(BOXES, boxes), Array(SCORES, boxes), Array(IDXS, scores), 0.5)


def test_a_producer_of_the_first_dlpack_version(own_library):
    """It knows no keywords but `stream`."""
    Array = own_library(root=True)
    Array.__dlpack__ = lambda self, stream=None: self.values.__dlpack__(stream=stream)
    np.testing.assert_array_equal(cvops.nms(Array(BOXES), Array(SCORES), 0.5).values, reference.nms(BOXES, SCORES, 0.5))


def test_a_producer_that_refuses(own_library):
    Array = own_library(root=True)

    def refuse(self, **options):
        raise BufferError("not today")

    Array.__dlpack__ = refuse
    with pytest.raises(TypeError, match=r"`boxes` .*not today"):
        cvops.nms(Array(BOXES), SCORES, 0.5)


# --------------------------------------------------------------------------------------------------- not an array

NOT_ARRAYS = {
    "list": BOXES.tolist(),
    "tuple": (BOXES, BOXES),
    "float": 1.5,
    "int": 3,
    "str": "boxes",
    "bytes": BOXES.tobytes(),
    "None": None,
    "dict": {"boxes": BOXES},
    "range": range(4),
    "type": np.ndarray,
    "object": object(),
    "module": np,
    "float32": np.float32(1),
    "memoryview": memoryview(BOXES),
    "MaskedArray": np.ma.masked_array(BOXES, BOXES > 5),
    "ndarray": BOXES.astype(object),
}


def refuses(error, text, wrong):
    """Every array argument of every operator refuses `wrong` with the same text, but for the name of the argument."""
    for operator, args in OPERATORS.items():
        function = getattr(cvops, operator)
        names = function.__code__.co_varnames
        for i, arg in enumerate(args):
            if isinstance(arg, np.ndarray):
                with pytest.raises(error, match=re.escape(text.replace("NAME", names[i]))):
                    function(*args[:i], wrong, *args[i + 1 :])


@pytest.mark.parametrize("kind", NOT_ARRAYS)
def test_what_is_not_an_array(kind):
    refuses(TypeError, f"`NAME` must be an array, got {kind}", NOT_ARRAYS[kind])


def test_half_of_the_dlpack_protocol(own_library):
    Array = own_library(root=True)
    del Array.__dlpack_device__
    refuses(TypeError, "`NAME` must be an array, got Array", Array(BOXES))


def test_sparse_and_pandas(scipy):
    sparse = scipy.sparse
    refuses(TypeError, "`NAME` must be an array, got csr_matrix", sparse.csr_matrix(BOXES))
    refuses(TypeError, "`NAME` must be an array, got coo_array", sparse.coo_array(BOXES))


def test_pandas(pandas):
    refuses(TypeError, "`NAME` must be an array, got DataFrame", pandas.DataFrame(BOXES))
    refuses(TypeError, "`NAME` must be an array, got Series", pandas.Series(SCORES))


# ----------------------------------------------------------------------------------------------------------- torch


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors(torch):
    refuses(TypeError, "`NAME` must be an array", torch.from_numpy(BOXES).to_sparse())
    refuses(TypeError, "`NAME` must be an array", torch.from_numpy(BOXES).to_sparse_csr())


@pytest.mark.parametrize("mode", ["enable_grad", "no_grad", "inference_mode"])
def test_tensors_that_require_grad(mode, torch):
    leaf = torch.from_numpy(BOXES.copy()).requires_grad_()
    computed, parameter = leaf * 2, torch.nn.Parameter(torch.ones(5, 4))
    with getattr(torch, mode)():
        for tensor in (leaf, computed, parameter):
            refuses(TypeError, "`NAME` requires grad: use cvops.torch, or pass NAME.detach()", tensor)
        boxes = leaf.detach()
        compare.same(cvops.nms(boxes, torch.from_numpy(SCORES), 0.5), reference.nms(BOXES, SCORES, 0.5), boxes)


def test_tensors_without_values(torch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(5, 4)
        refuses(TypeError, "cvops.torch", fake)
    refuses(TypeError, "cvops.torch", fake)
    refuses(ValueError, "`NAME` is on meta", torch.ones(5, 4, device="meta"))


def test_tensors_without_memory(torch):
    """DLPack gives no address for them, and NumPy would take any memory for theirs."""

    class Wrapper(torch.Tensor):
        """As DTensor: what it computes is up to it."""

        __torch_dispatch__ = classmethod(lambda cls, function, types, args=(), kwargs=None: None)

    freed = torch.ones(5, 4)
    freed.untyped_storage().resize_(0)
    for tensor in (
        torch.Tensor._make_wrapper_subclass(Wrapper, (5, 4), dtype=torch.float32),
        torch._to_functional_tensor(torch.ones(5, 4)),
        torch._efficientzerotensor((5, 4)),
        freed,
    ):
        refuses(TypeError, f"`NAME` is a {_arrays.kind(tensor)} without memory of its own: use cvops.torch", tensor)
    none = torch.ones(0, 4)
    assert none.data_ptr() == 0
    compare.same(cvops.box_area(none), np.ones(0, "f"), none)


# Torch's forward mode starts by calling its own deprecated function.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@forward_mode
def test_tensors_under_torch_func(torch):
    boxes = torch.from_numpy(BOXES.copy())
    for transform in (torch.func.vmap, torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(TypeError, match=r"`boxes` .*cvops\.torch"):
            transform(lambda boxes: cvops.box_area(boxes).sum())(boxes)


@forward_mode
def test_tensors_that_carry_a_tangent(torch):
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.from_numpy(BOXES.copy()), torch.ones(5, 4))
        refuses(TypeError, "cvops.torch", dual)


def test_tensors_under_torch_compile(torch):
    """Refused whether torch may compile around the call or not; outside of what it compiles, calls work."""
    boxes, scores = torch.from_numpy(BOXES.copy()), torch.from_numpy(SCORES.copy())

    def call(boxes, scores):
        return cvops.nms(boxes + 1, scores, 0.5)

    with pytest.raises(TypeError, match=r"`boxes` .*cvops\.torch"):
        torch.compile(call, backend="eager")(boxes, scores)
    with pytest.raises((TypeError, torch._dynamo.exc.Unsupported), match=r"`boxes` .*cvops\.torch"):
        torch.compile(call, backend="eager", fullgraph=True)(boxes, scores)
    around = torch.compiler.disable(call)
    got = torch.compile(lambda boxes: around(boxes - 1, scores), backend="eager")(boxes + 1)
    compare.same(got, reference.nms(BOXES, SCORES, 0.5), boxes)


def test_tensors_whose_signs_are_flipped_lazily(torch):
    """Torch's DLPack export hands out the memory as it is."""
    boxes = torch.complex(torch.zeros(5, 4), torch.from_numpy(BOXES[:, [2, 3, 0, 1]])).conj().imag
    assert boxes.is_neg()
    compare.close(cvops.box_area(boxes), reference.box_area(-BOXES[:, [2, 3, 0, 1]]), boxes)
    compare.same(cvops.box_convert(boxes, "xyxy", "xyxy"), -BOXES[:, [2, 3, 0, 1]], boxes)


def test_tensors_of_any_strides(torch):
    boxes = torch.from_numpy(BOXES.T.copy()).T
    compare.same(cvops.nms(boxes, torch.from_numpy(SCORES), 0.5), reference.nms(BOXES, SCORES, 0.5), boxes)
    boxes = torch.from_numpy(BOXES[:1].copy()).expand(5, 4)
    compare.same(cvops.nms(boxes, torch.from_numpy(SCORES), 0.5), np.array([3]), boxes)


# ------------------------------------------------------------------------------------------------------------- jax


@pytest.mark.parametrize("transform", ["jit", "vmap", "grad", "make_jaxpr"])
def test_jax_tracers(transform, jax):
    with pytest.raises(TypeError, match=r"`boxes` .*cvops\.jax"):
        getattr(jax, transform)(lambda boxes: cvops.box_area(boxes).sum())(jax.numpy.asarray(BOXES))
    with pytest.raises(TypeError, match=r"`scores` .*cvops\.jax"):
        jax.jit(lambda scores: cvops.nms(BOXES, scores, 0.5))(SCORES)


# --------------------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_bfloat16(library):
    module = require(library)
    boxes = (module if library == "torch" else module.numpy).ones((5, 4), dtype=getattr(module, "bfloat16", "bfloat16"))
    refuses(TypeError, "got bfloat16", boxes)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@every_operator
def test_float16(library, operator):
    check(operator, libraries.CONVERTERS[library], "f2")


# ------------------------------------------------------------------------------------------------------ thresholds


HUGE = 10**400
LONG = 10**5000  # Python refuses to print it


def calls_of_numbers(convert):
    """[(call that takes a number, its name), ...] for numbers and for integers."""
    boxes, scores, idxs = convert(BOXES), convert(SCORES), convert(IDXS)
    image, rois = convert(np.ones((1, 4, 5, 5), np.float32)), convert(np.array([[0, 1, 1, 4, 4]], np.float32))
    grad = convert(np.ones((1, 1, 2, 2), np.float32))
    offset, weight = convert(np.zeros((1, 2, 5, 5), np.float32)), convert(np.ones((1, 4, 1, 1), np.float32))
    floats = [
        (lambda x: cvops.nms(boxes, scores, x), "iou_threshold"),
        (lambda x: cvops.nms(boxes, scores, 0.5, score_threshold=x), "score_threshold"),
        (lambda x: cvops.batched_nms(boxes, scores, idxs, x), "iou_threshold"),
        (lambda x: cvops.batched_nms(boxes, scores, idxs, 0.5, score_threshold=x, padded=True), "score_threshold"),
        (lambda x: cvops.distance_box_iou(boxes, boxes, x), "eps"),
        (lambda x: cvops.complete_box_iou(boxes, boxes, x), "eps"),
        (lambda x: cvops.clip_boxes_to_image(boxes, (x, 5)), "size"),
        (lambda x: cvops.clip_boxes_to_image(boxes, (5, x)), "size"),
        (lambda x: cvops.remove_small_boxes(boxes, x), "min_size"),
        (lambda x: cvops.roi_align(image, rois, 2, x), "spatial_scale"),
        (lambda x: cvops.roi_pool(image, rois, 2, x), "spatial_scale"),
        (lambda x: cvops.ps_roi_align(image, rois, 2, x), "spatial_scale"),
        (lambda x: cvops.ps_roi_pool(image, rois, 2, x), "spatial_scale"),
        (lambda x: cvops.roi_align_backward(grad, rois, (1, 1, 5, 5), x), "spatial_scale"),
        (lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2, scales=[x])({"a": image}, rois, []), "scales"),
        (
            lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2, canonical_scale=x)({"a": image}, rois, [(5, 5)]),
            "canonical_scale",
        ),
    ]
    integers = [
        (lambda x: cvops.nms(boxes, scores, 0.5, max_output=x, padded=True), "max_output"),
        (lambda x: cvops.roi_align(image, rois, x), "output_size"),
        (lambda x: cvops.roi_pool(image, rois, (2, x)), "output_size"),
        (lambda x: cvops.roi_align_backward(grad, rois, (1, 1, x, 5)), "input_shape"),
        (lambda x: cvops.roi_align_backward(grad, rois, (x, 1, 5, 5)), "input_shape"),
        (lambda x: cvops.deform_conv2d(image, offset, weight, None, x), "stride"),
        (lambda x: cvops.deform_conv2d(image, offset, weight, None, 1, x), "padding"),
        (lambda x: cvops.deform_conv2d(image, offset, weight, None, 1, 0, (1, x)), "dilation"),
        (
            lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2, canonical_level=x)({"a": image}, rois, [(5, 5)]),
            "canonical_level",
        ),
        (lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2)({"a": image}, rois, [(x, 5)]), "image_shapes"),
        (lambda x: cvops.DeformConv2d(x, 4, 3), "in_channels"),
        (lambda x: cvops.DeformConv2d(4, x, 3), "out_channels"),
        (lambda x: cvops.DeformConv2d(4, 4, 3, groups=x), "groups"),
        (lambda x: cvops.FeaturePyramidNetwork([x], 4), "in_channels_list"),
        (lambda x: cvops.FeaturePyramidNetwork([4], x), "out_channels"),
        (lambda x: cvops.LastLevelP6P7(x, 4), "in_channels"),
    ]
    return floats, integers


@pytest.mark.parametrize("shape", [(), (1,)])
def test_numbers_that_are_arrays(array, shape):
    """Also where it would do no harm: on a GPU, reading it would wait for the device."""
    half, two = array(np.full(shape, 0.5, np.float32)), array(np.full(shape, 2, np.int32))
    of_numpy = isinstance(half, np.ndarray) and shape == ()  # which count as scalars
    floats, integers = calls_of_numbers(array)
    for value, calls in ((half, floats), (two, integers)):
        for call, name in calls:
            if of_numpy:
                with contextlib.suppress(ValueError):  # a stride or a number of groups that does not suit the rest
                    call(value)
            else:
                with pytest.raises(TypeError, match=f"`{name}` must be "):
                    call(value)


def test_numbers_too_large_for_a_float(array):
    floats, integers = calls_of_numbers(array)
    for value in (HUGE, -HUGE, LONG, fractions.Fraction(HUGE, 3)):
        for call, name in floats:
            with pytest.raises(ValueError, match=f"`{name}` must be .*, got [^0]{{1,40}}") as raised:
                call(value)
            assert len(str(raised.value)) < 200
    for value in (HUGE, -HUGE, LONG):
        for call, name in integers:
            with pytest.raises(ValueError, match=f"`{name}` must be .*, got an integer of [0-9]+ bits$"):
                call(value)
    assert to_numpy(cvops.nms(array(BOXES), array(SCORES), 0.5, max_output=HUGE)).shape == (3,)


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 10_000, reason="long double is double here")
def test_long_doubles_too_large_for_a_float():
    floats, _ = calls_of_numbers(np.array)
    for call, name in floats:
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            call(np.longdouble("1e4000"))


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.array])
def test_numbers_may_be_numpy_scalars(number):
    got = cvops.nms(BOXES, SCORES, number(0.5), score_threshold=number(0.25), max_output=np.int8(2))
    compare.same(got, reference.nms(BOXES, SCORES, 0.5, score_threshold=0.25, max_output=2), BOXES)


# ------------------------------------------------------------------------------------------------ errors that help


def test_flags_are_no_arrays(array):
    """Their truth would be a question to the device, or the library's complaint about it."""
    wrong, boxes, scores, idxs = array(np.array([1, 0])), array(BOXES), array(SCORES), array(IDXS)
    image, rois = array(np.ones((1, 4, 5, 5), np.float32)), array(np.array([[0, 1, 1, 4, 4]], np.float32))
    pool = functools.partial(cvops.MultiScaleRoIAlign, ["a"], 2, 2, scales=[1])
    for call, name in [
        (lambda x: cvops.nms(boxes, scores, 0.5, padded=x), "padded"),
        (lambda x: cvops.batched_nms(boxes, scores, idxs, 0.5, padded=x), "padded"),
        (lambda x: cvops.roi_align(image, rois, 2, aligned=x), "aligned"),
        (lambda x: cvops.roi_pool(image, rois, 2, return_argmax=x), "return_argmax"),
        (lambda x: pool(aligned=x)({"a": image}, rois, []), "aligned"),
        (lambda x: cvops.DeformConv2d(4, 4, 1, bias=x), "bias"),
    ]:
        for value in (wrong, "yes", None, 1.0, []):
            with pytest.raises(TypeError, match=f"`{name}` must be True or False, got {type(value).__name__[:4]}"):
                call(value)
        for value in (True, 1, np.True_, np.int8(0), np.array(True)):
            call(value)


def test_texts_are_no_arrays(array):
    wrong, boxes = array(np.array([1, 0])), array(BOXES)
    image, offset, weight = (array(np.ones(shape, np.float32)) for shape in [(1, 1, 3, 3), (1, 2, 3, 3), (1, 1, 1, 1)])
    backward = functools.partial(cvops.deform_conv2d_backward, image, image, offset, weight)
    for call, name in [
        (lambda x: cvops.box_area(boxes, x), "fmt"),
        (lambda x: cvops.box_iou(boxes, boxes, x), "fmt"),
        (lambda x: cvops.complete_box_iou(boxes, boxes, fmt=x), "fmt"),
        (lambda x: cvops.box_convert(boxes, x, "xyxy"), "in_fmt"),
        (lambda x: cvops.box_convert(boxes, "xyxy", x), "out_fmt"),
        (lambda x: backward(wanted=[x]), "wanted"),
        (lambda x: cvops.warmup(x), "device"),
        (lambda x: cvops.warmup(dtypes=[x]), "dtypes"),
        (lambda x: cvops.warmup(operators=[x]), "operators"),
        (lambda x: cvops.DeformConv2d(1, 1, 1).load_state_dict({}, x), "prefix"),
        (lambda x: cvops.MultiScaleRoIAlign([x], 2, 2)({"a": image}, boxes, []), "featmap_names"),
    ]:
        for value in (wrong, 3, None, ["xyxy"]):
            with pytest.raises(TypeError, match=f"`{name}` must be a .*str.*, got {type(value).__name__[:4]}"):
                call(value)
    with pytest.raises(TypeError, match="`state_dict` must be a list of str, got int in it"):
        cvops.DeformConv2d(1, 1, 1).load_state_dict({3: wrong})


def test_wrong_sequences(array):
    image, boxes = array(np.ones((1, 1, 3, 3), np.float32)), array(np.zeros((1, 5), np.float32))
    offset, weight = array(np.zeros((1, 2, 3, 3), np.float32)), array(np.ones((1, 1, 1, 1), np.float32))
    pool = cvops.MultiScaleRoIAlign
    backward = functools.partial(cvops.deform_conv2d_backward, image, image, offset, weight)
    for call, text in [
        (lambda: backward(wanted=3), "`wanted` must be a list of str, got int"),
        (lambda: pool(3, 2, 2)({"a": image}, boxes, []), "`featmap_names` must be a list of str, got int"),
        (lambda: pool("a", 2, 2)({"a": image}, boxes, []), "`featmap_names` must be a list of str, got str"),
        (lambda: pool(["a"], 2, 2, scales=3)({"a": image}, boxes, []), "`scales` must be a list of numbers, got int"),
        (lambda: pool(["a"], 2, 2)([image], boxes, [(3, 3)]), "`features` must be a dict of arrays by name, got list"),
        (lambda: pool(["a"], 2, 2)(image, boxes, [(3, 3)]), "`features` must be a dict of arrays by name, got "),
        (lambda: cvops.FeaturePyramidNetwork([1], 1)([image]), "`maps` must be a dict of arrays by name, got list"),
        (lambda: cvops.warmup(operators=3), "`operators` must be a list of str, got int"),
    ]:
        with pytest.raises(TypeError, match=re.escape(text)):
            call()


def test_no_error_prints_an_array(array):
    """Nor a long list."""
    large = array(np.full((2000, 2), 123.25, np.float32))
    boxes, scores = array(BOXES), array(SCORES)
    image = array(np.ones((1, 1, 3, 3), np.float32))
    for value in (large, [large] * 3, (large, large), [7.5] * 2000, {"a": large}, "a" * 2000):
        for call in (
            lambda x: cvops.nms(boxes, scores, x),
            lambda x: cvops.nms(boxes, scores, 0.5, max_output=x),
            lambda x: cvops.nms(boxes, scores, 0.5, padded=x),
            lambda x: cvops.box_area(boxes, x),
            lambda x: cvops.clip_boxes_to_image(boxes, x),
            lambda x: cvops.roi_align(image, boxes[:, :1], x),
            lambda x: cvops.roi_align_backward(image, boxes, x),
            lambda x: cvops.MultiScaleRoIAlign(x, 2, 2)({}, boxes, []),
            lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2)({"a": image}, boxes, x),
            lambda x: cvops.MultiScaleRoIAlign(["a"], 2, 2, scales=x)({"a": image}, boxes, []),
            lambda x: cvops.warmup(x),
            lambda x: cvops.warmup(operators=x),
            lambda x: cvops.DeformConv2d(1, 1, 1).load_state_dict({"weight": x, "bias": x}),
            lambda x: cvops.DeformConv2d(1, 1, kernel_size=x),
            lambda x: cvops.deform_conv2d_backward(image, image, image, image, wanted=x),
        ):
            with pytest.raises((TypeError, ValueError, KeyError)) as raised:
                call(value)
            assert len(str(raised.value)) < 500
            assert "123.25" not in str(raised.value)


@pytest.mark.parametrize("kind", ["list", "tuple", "float", "int", "float32", "memoryview"])
def test_what_makes_an_array_is_named(kind):
    refuses(TypeError, f"`NAME` must be an array, got {kind}: use np.asarray", NOT_ARRAYS[kind])


@pytest.mark.parametrize("library", libraries.CONVERTERS)
def test_refused_dtypes_name_the_conversion_of_the_library(library):
    convert = libraries.CONVERTERS[library]
    conversion = re.escape(".to" if "torch" in library else ".astype")
    boxes, scores = convert(BOXES), convert(SCORES)
    image, rois = convert(np.ones((1, 1, 4, 4), np.float32)), convert(np.zeros((1, 5), np.float32))
    offset, weight = convert(np.zeros((1, 2, 4, 4), np.float32)), convert(np.ones((1, 1, 1, 1), np.float32))

    def of(dtype, *shape):
        return convert(np.ones(shape, dtype))

    for call, name in [
        (lambda: cvops.nms(of(bool, 5, 4), scores, 0.5), "boxes"),
        (lambda: cvops.nms(boxes, of(int, 5), 0.5), "scores"),
        (lambda: cvops.batched_nms(boxes, scores, of(bool, 5), 0.5), "idxs"),
        (lambda: cvops.box_area(of(bool, 5, 4)), "boxes"),
        (lambda: cvops.box_iou(boxes, of(np.complex64, 5, 4)), "boxes2"),
        (lambda: cvops.masks_to_boxes(of(np.complex64, 1, 4, 4)), "masks"),
        (lambda: cvops.roi_align(of(int, 1, 1, 4, 4), rois, 2), "input"),
        (lambda: cvops.roi_pool(image, of(int, 1, 5), 2), "boxes"),
        (lambda: cvops.ps_roi_pool(image, [of(np.int8, 1, 4)], 2), "boxes[0]"),
        (lambda: cvops.roi_align_backward(of(int, 1, 1, 2, 2), rois, (1, 1, 4, 4)), "grad"),
        (lambda: cvops.deform_conv2d(of(int, 1, 1, 4, 4), offset, weight), "input"),
        (lambda: cvops.deform_conv2d(image, of(int, 1, 2, 4, 4), weight), "offset"),
        (lambda: cvops.FeaturePyramidNetwork([1], 1)({"a": of(int, 1, 1, 4, 4)}), "maps['a']"),
        (
            lambda: cvops.MultiScaleRoIAlign(["a"], 2, 2, scales=[1])({"a": of(int, 1, 1, 4, 4)}, rois, []),
            "features['a']",
        ),
    ]:
        with pytest.raises(
            TypeError, match=rf"^`{re.escape(name)}` must be .*, got \w+: convert it with {conversion}$"
        ):
            call()


class Odd:
    """An array library's array, of which one part of the protocol fails."""

    def __init__(self, values=BOXES):
        self.values = values

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __array_namespace__(self, api_version=None):
        return types.SimpleNamespace(from_dlpack=np.from_dlpack)


FAILURES = [RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OSError, MemoryError]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("part", ["__dlpack__", "__dlpack_device__"])
def test_protocols_that_raise(part, failure):
    def fail(self, **options):
        raise failure("out of order")

    wrong = type("Array", (Odd,), {part: fail})()
    refuses(TypeError, "`NAME` ", wrong)
    with pytest.raises(TypeError, match=r"`boxes` .*out of order") as raised:
        cvops.box_area(wrong)
    assert isinstance(raised.value.__cause__, failure)


@pytest.mark.parametrize("result", [None, 3, "capsule", np.zeros(3), object()])
def test_protocols_that_return_something_else(result):
    refuses(TypeError, "`NAME` ", type("Array", (Odd,), {"__dlpack__": lambda self, **options: result})())
    refuses(TypeError, "`NAME` ", type("Array", (Odd,), {"__dlpack_device__": lambda self: result})())


def test_a_namespace_that_raises():
    def fail(self, **options):
        raise RuntimeError("out of order")

    wrong = type("Array", (Odd,), {"__array_namespace__": fail})()
    with pytest.raises(TypeError, match="`boxes`: Array has no from_dlpack"):
        cvops.box_area(wrong)
    assert cvops.nms(BOXES, type("Array", (Odd,), {"__array_namespace__": fail})(SCORES), 0.5).tolist() == [3, 1, 2]


# --------------------------------------------------------------------------------------------------------- imports


def run(code):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


HEAVY = "sorted({'numpy', 'numba', 'llvmlite', 'torch', 'jax', 'cupy', 'array_api_strict'} & set(sys.modules))"


def test_import_is_light():
    assert run(f"import sys, cvops; print(*{HEAVY})") == []


def test_calls_import_only_what_computes():
    code = "import sys, cvops, numpy as np; cvops.nms(np.zeros((0, 4)), np.zeros(0), 0.5)"
    assert run(f"{code}\nprint(*{HEAVY})") == ["llvmlite", "numba", "numpy"]


def test_refusals_before_numpy_is_imported():
    code = """
import sys, cvops
class Array:
    __dlpack__ = None
    def __dlpack_device__(self): return 1, 0
for wrong in ([[0, 0, 1, 1]], None, Array(), Array):
    try:
        cvops.nms(wrong, wrong, 0.5)
    except TypeError as error:
        print("`boxes`" in str(error))
"""
    assert run(f"{code}\nprint(*{HEAVY})") == ["True"] * 4


# --------------------------------------------------------------------------------------------- what libraries warn of

deprecation = pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])


@deprecation
@pytest.mark.parametrize(
    "module", ["cuda.pathfinder", "cupy_backends.cuda", "cupyx", "jax._src.core", "torch.cuda", "triton"]
)
def test_deprecations_within_libraries_fail_no_test(module, category):
    """As torch.cuda has one where pynvml is installed: which ones come, depends on the machine."""
    warnings.warn_explicit("it is deprecated", category, "file.py", 1, module)


@deprecation
@pytest.mark.parametrize("module", ["cvops._nms", "tests.test_arrays", "cudata"])
def test_deprecations_elsewhere_fail(module, category):
    with pytest.raises(category):
        warnings.warn_explicit("it is deprecated", category, "file.py", 1, module)
