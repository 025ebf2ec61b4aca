"""torchvision's operators and models on cvops: the same results, by kernels that are counted."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from tests import torch_calls
from tests.torch_calls import DEFORM, MAP, ROIS

pytestmark = torch_calls.quiet


@pytest.fixture(scope="module")
def replace(torch):
    from cvops.torch import replace_torchvision

    return replace_torchvision


def results(torchvision, torch):
    """Name of an operator -> its results and the gradients of its tensors."""
    ops, found = torchvision.ops, {}
    found["nms"] = [ops.nms(*torch_calls.tensors("nms"))]
    inner = torch.from_numpy(ROIS[:3])  # away from the border, where gradients of ps_roi_pool differ
    for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
        maps = torch.from_numpy(MAP.copy()).requires_grad_()
        pooled = getattr(ops, name)(maps, inner, 2, 0.5)
        found[name] = [pooled, *torch.autograd.grad(pooled.sin().sum(), maps)]
    for mask in (True, False):
        arrays = {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in DEFORM.items()}
        if not mask:
            del arrays["mask"]
        output = ops.deform_conv2d(**arrays, padding=1)
        name = "deform_conv2d" + (" with mask" if mask else "")
        found[name] = [output, *torch.autograd.grad(output.sin().sum(), list(arrays.values()))]
    return found


KERNELS = {
    *("nms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"),
    *("_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward"),
    "_deform_conv2d_backward",
}


def test_every_operator(replace, torchvision, torch):
    want = results(torchvision, torch)
    with replace() as calls:
        got = results(torchvision, torch)
    assert set(calls) == KERNELS
    assert calls["deform_conv2d"] == calls["_deform_conv2d_backward"] == 2
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-4)


def test_everything_is_as_before_at_the_end(replace, torchvision, torch):
    want = results(torchvision, torch)
    with pytest.raises(ZeroDivisionError), replace() as calls:
        raise ZeroDivisionError
    with replace():
        pass
    got = results(torchvision, torch)
    assert not calls
    for name in want:
        assert all(map(torch.equal, got[name], want[name])), name


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"])
@pytest.mark.parametrize("forward", [True, False])
def test_the_end_may_come_between_forward_and_backward(replace, torchvision, torch, name, forward):
    def function():
        maps = torch.from_numpy(MAP.copy()).requires_grad_()
        if name == "deform_conv2d":
            arrays = {key: torch.from_numpy(array) for key, array in DEFORM.items()}
            return maps, torchvision.ops.deform_conv2d(**{**arrays, "input": maps[:, :4]}, padding=1)
        return maps, getattr(torchvision.ops, name)(maps, torch.from_numpy(ROIS[:3]), 2, 0.5)

    maps, output = function()
    (want,) = torch.autograd.grad(output.sin().sum(), maps)
    if forward:
        with replace():
            maps, output = function()
        (got,) = torch.autograd.grad(output.sin().sum(), maps)
    else:
        maps, output = function()
        with replace():
            (got,) = torch.autograd.grad(output.sin().sum(), maps)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def restored():
    """The operators of torchvision are its own again after the test."""
    yield
    from cvops.torch import _replace

    for replacement in list(_replace._active.values()):
        replacement.restore()


@pytest.mark.usefixtures("restored")
def test_one_at_a_time(replace, torchvision):
    for again in (replace, lambda: replace().__enter__()):
        with replace(), pytest.raises(RuntimeError, match=r"replaced already: call restore\(\)"):
            again()
    first = replace()
    with pytest.raises(RuntimeError, match="restore"):
        replace()
    first.restore()
    with replace():
        pass


@pytest.mark.usefixtures("restored")
def test_as_a_statement(replace, torchvision):
    args = torch_calls.tensors("nms")
    replacement = replace()
    torchvision.ops.nms(*args)
    assert replacement.calls == {"nms": 1}
    replacement.restore()
    torchvision.ops.nms(*args)
    assert replacement.calls == {"nms": 1}


@pytest.mark.usefixtures("restored")
def test_the_object_may_be_dropped(replace, torchvision, monkeypatch):
    from cvops.torch import _nms

    seen = []
    nms = _nms.nms_kernel
    monkeypatch.setattr(_nms, "nms_kernel", lambda *args: seen.append(1) or nms(*args))
    replace()
    gc.collect()
    torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert seen == [1]
    with pytest.raises(RuntimeError, match="restore"):
        replace()


@pytest.mark.usefixtures("restored")
def test_restore_twice(replace, torchvision):
    first = replace()
    first.restore()
    first.restore()
    second = replace()
    first.restore()  # has nothing to do with the second
    torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert second.calls == {"nms": 1}
    with second as calls:
        second.restore()
    assert calls is second.calls
    torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert second.calls == {"nms": 1}


@pytest.mark.usefixtures("restored")
def test_a_statement_then_a_context(replace, torchvision):
    replacement = replace()
    with replacement as calls:
        torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert calls == {"nms": 1}
    torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert calls == {"nms": 1}


@pytest.mark.usefixtures("restored")
def test_threads_that_replace_at_once(replace, torchvision):
    """One of them does; the others are told."""
    made, refused, start = [], [], threading.Barrier(8)

    def attempt():
        start.wait()
        try:
            made.append(replace())
        except RuntimeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    made[0].restore()


def test_without_operators_nothing_is_held(replace, torchvision, monkeypatch):
    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: False)
    with pytest.raises(ImportError, match="without its operators"):
        replace()
    monkeypatch.undo()
    with replace():
        pass


@pytest.mark.usefixtures("restored")
def test_a_replacement_that_fails_leaves_nothing(replace, torchvision, monkeypatch):
    from cvops.torch import _replace

    monkeypatch.setattr(_replace, "_KERNELS", (*_replace._KERNELS[:3], object()))
    with pytest.raises(AttributeError):
        replace()
    monkeypatch.undo()
    with replace() as calls:
        torchvision.ops.nms(*torch_calls.tensors("nms"))
    assert calls == {"nms": 1}


OTHER_THRESHOLDS = [-5e-324, -0.5, -1.0, -float("inf"), 1.0, 1 + 1e-9, 1.5, 50, float("inf")]


@pytest.mark.parametrize("threshold", OTHER_THRESHOLDS)
@pytest.mark.parametrize("kind", ["boxes", "identical", "empty", "inverted", "some without area", "no boxes"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_thresholds_outside_0_to_1(replace, torchvision, torch, threshold, kind, dtype):
    random = torch.Generator().manual_seed(0)
    corners = (torch.rand(200, 2, generator=random) * 50).round()
    sides = (torch.rand(200, 2, generator=random) * 9).round()
    boxes, scores = torch.cat([corners, corners + sides], 1), torch.rand(200, generator=random)
    boxes = {
        "identical": boxes[:1].expand(200, 4),
        "empty": torch.cat([corners, corners], 1),
        "inverted": torch.cat([corners, corners - 3], 1),
        "some without area": torch.cat([boxes[:100], torch.cat([corners, corners], 1)[100:]]),
        "no boxes": boxes[:0],
    }.get(kind, boxes)
    args = boxes.to(getattr(torch, dtype)), scores[: len(boxes)].to(getattr(torch, dtype)), threshold
    want = torchvision.ops.nms(*args)
    idxs = torch.arange(len(boxes)) % 3
    want_batched = torchvision.ops.batched_nms(*args[:2], idxs, threshold)
    with replace() as calls:
        assert torch.equal(torchvision.ops.nms(*args), want)
        assert torch.equal(torchvision.ops.batched_nms(*args[:2], idxs, threshold), want_batched)
    assert calls["nms"] == (2 if len(boxes) else 1)


def test_a_threshold_that_is_nan(replace, torchvision, torch):
    with replace(), pytest.raises(ValueError, match="`iou_threshold` must be"):
        torchvision.ops.nms(*torch_calls.tensors("nms")[:2], float("nan"))


def test_other_threads_and_scripts(replace, torchvision, torch):
    args = torch_calls.tensors("nms")
    script = torch.jit.script(torchvision.ops.nms)
    with replace() as calls:
        thread = threading.Thread(target=script, args=args)
        thread.start()
        thread.join()
        np.testing.assert_array_equal(script(*args), torch_calls.want("nms"))
    assert calls == {"nms": 2}


def test_half_precision(replace, torchvision, torch):
    maps, rois = torch.from_numpy(MAP).half(), torch.from_numpy(ROIS).half()
    want = torchvision.ops.roi_align(maps, rois, 2)
    with replace():
        got = torchvision.ops.roi_align(maps, rois, 2)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, want, rtol=4e-3, atol=4e-3)


# ----------------------------------------------------------------------------------------------------------- models

SMALL = {"min_size": 96, "max_size": 128}
FEW = {
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 50,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 50,
    "box_batch_size_per_image": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 10,
}
# Name of a model -> options, and the kernels that its inference and its training must call.
MODELS = {
    "fasterrcnn_resnet50_fpn": ({**SMALL, **FEW}, {"nms", "roi_align"}, {"nms", "roi_align", "_roi_align_backward"}),
    "maskrcnn_resnet50_fpn": ({**SMALL, **FEW}, {"nms", "roi_align"}, {"nms", "roi_align", "_roi_align_backward"}),
    "keypointrcnn_resnet50_fpn": ({**SMALL, **FEW}, {"nms", "roi_align"}, {"nms", "roi_align", "_roi_align_backward"}),
    "retinanet_resnet50_fpn": ({**SMALL, "score_thresh": 0.0}, {"nms"}, set()),
    "fcos_resnet50_fpn": ({**SMALL, "score_thresh": 0.0}, {"nms"}, set()),
    "ssdlite320_mobilenet_v3_large": ({"score_thresh": 0.0}, {"nms"}, set()),
}


def images(torch):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, 80, 100, generator=generator), torch.rand(3, 90, 64, generator=generator)]


def model(torchvision, torch, name):
    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, name)
    return make(weights=None, weights_backbone=None, num_classes=2, **MODELS[name][0])


@pytest.mark.parametrize("name", MODELS)
def test_detections(replace, torchvision, torch, name):
    detector = model(torchvision, torch, name).eval()
    with torch.no_grad():
        want = detector(images(torch))
        with replace() as calls:
            got = detector(images(torch))
    assert set(calls) == MODELS[name][1]
    for one, other in zip(got, want, strict=True):
        assert len(one["boxes"]) > 0
        assert torch.equal(one["labels"], other["labels"])
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name][2]])
def test_a_training_step(replace, torchvision, torch, name):
    """In float64: the rounding of float32 grows through the layers, on some processors to 2e-4 of the gradients."""
    detector = model(torchvision, torch, name).double().train()
    pictures = [image.double() for image in images(torch)]
    for module in detector.modules():  # statistics of two images with random weights are chaos
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    targets = [
        {
            "boxes": torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 60]], dtype=torch.float64),
            "labels": torch.tensor([1, 1]),
            "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8),
            "keypoints": torch.tensor([20.0, 20, 1]).expand(2, 17, 3),
        }
        for image in pictures
    ]

    def gradients():
        torch.manual_seed(1)  # samples proposals
        detector.zero_grad()
        sum(detector(pictures, targets).values()).backward()
        return {key: value.grad for key, value in detector.named_parameters() if value.grad is not None}

    want = gradients()
    with replace() as calls:
        got = gradients()
    assert set(calls) == MODELS[name][2]
    assert got.keys() == want.keys()
    for key, gradient in want.items():
        scale = max(1.0, gradient.abs().max().item())
        assert (got[key] - gradient).abs().max().item() <= 1e-9 * scale, key


def test_attributes_may_be_swapped(replace, torchvision, torch):
    """Constructors of torchvision check types; afterwards its pooler can be ours."""
    import cvops.torch as ops

    detector = model(torchvision, torch, "fasterrcnn_resnet50_fpn").eval()
    with torch.no_grad():
        want = detector(images(torch))
        pool = detector.roi_heads.box_roi_pool
        detector.roi_heads.box_roi_pool = ops.MultiScaleRoIAlign(pool.featmap_names, pool.output_size, 2)
        got = detector(images(torch))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
