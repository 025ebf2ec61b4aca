"""Every operator on a GPU, on CuPy arrays and on torch tensors, beside torchvision: `python -m benchmarks gpu`.

Each row is measured three times. Device time is that between two CUDA events around some calls, which the host has
queued before the device awakes; a call that itself waits for the device (nms, without `padded`) shows the host's part
as well, on every side. Host time is how long the host is busy with a call that it does not wait for. Wall time is that
of a call and of waiting until its result is there.

Each call takes the next one of several copies of the inputs, together twice as large as the L2 cache, so that none is
still in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np

import cvops
from tests.data import (
    CASES,
    POSITION_SENSITIVE,
    SMALL,
    SMALL_POSITION_SENSITIVE,
    Array,
    Case,
    clustered,
    deformed,
    pyramid_boxes,
    uniform,
)

from . import heads
from .deform_conv import SHAPES
from .deform_conv import name as name_of_shape
from .harness import Call, Row, all_close_to_largest, same_indices
from .peers import detections_by_torchvision
from .pyramid import CHANNELS

TINY = Case((1, 8, 50, 50), 4, 7, 1 / 4, 2)  # where the host decides
NMS_SIZES = [10, 100, 1_000, 10_000, 100_000]
BATCHED_SIZES = [1_000, 20_000, 100_000]
MOST_COPIES = 4096
# So many calls are queued at most: a call may be thirty launches, and a queue of about a thousand makes the host wait.
MOST_QUEUED = 16

Arrays = Mapping[str, Any]
# Arrays by name, as a side takes them, to what it computes from them.
Function = Callable[[Arrays], Any]


def load(name: str) -> Any:
    """A package that is there wherever this suite runs."""
    return import_module(name)


def missing() -> str:
    """What this machine lacks to run the suite; empty if nothing."""
    packages = [package for package in ("cupy", "torch", "torchvision") if not find_spec(package)]
    if packages:
        return f"{', '.join(packages)} not installed"
    try:
        cupy, torch = load("cupy"), load("torch")
    except (ImportError, OSError) as error:  # of another CUDA than the driver's, for example
        return f"{error}"
    if not cupy.cuda.is_available():
        return "CuPy finds no GPU"
    return "" if torch.cuda.is_available() else "torch finds no GPU"


def describe() -> dict[str, Any]:
    """The GPU, for the results file."""
    cupy, torch = load("cupy"), load("torch")
    return {
        "gpu": torch.cuda.get_device_name(),
        "l2_bytes": _l2_bytes(),
        "cuda": {
            "driver": cupy.cuda.runtime.driverGetVersion(),
            "cupy": cupy.cuda.runtime.runtimeGetVersion(),
            "torch": torch.version.cuda,
        },
    }


def rows(quick: bool) -> Iterator[Row]:
    for n in NMS_SIZES[: 2 if quick else None]:
        yield from nms_rows(n)
    for n in BATCHED_SIZES[: 1 if quick else None]:
        yield from batched_nms_rows(n)
    for head in heads.SMALL if quick else heads.HEADS:
        yield from multiclass_nms_rows(head)
    for case in SMALL if quick else [*CASES, TINY]:
        yield from roi_rows("roi_align", case, case.samples)
        yield from roi_rows("roi_pool", case)
    yield from decode_boxes_rows(2_000 if quick else 200_000)
    position_sensitive = SMALL_POSITION_SENSITIVE if quick else POSITION_SENSITIVE
    yield from roi_rows("ps_roi_align", position_sensitive, position_sensitive.samples)
    yield from roi_rows("ps_roi_pool", position_sensitive)
    yield from pooler_rows(*((200, 336, 32, 64) if quick else (800, 1344, 256, 1000)))
    yield from network_rows(*((100, 168) if quick else (800, 1344)))
    for shape in SHAPES[: 1 if quick else None]:
        for dtype in ("float32", "float16"):
            yield from deform_conv2d_rows(shape, dtype)


# ---------------------------------------------------------------------------------------------------------- clocks


def device_seconds(call: Call, number: int) -> float:
    """Seconds of the device for `number` calls."""
    queued = min(number, MOST_QUEUED)
    seconds, late = _after_sleep(call, queued)
    if late and queued > 1 and not _after_sleep(call, 1)[1]:  # not the call waits, but the host: for room in the queue
        while late and queued > 1:
            queued //= 2
            seconds, late = _after_sleep(call, queued)
    return seconds * number / queued


def _after_sleep(call: Call, number: int) -> tuple[float, bool]:
    """(seconds of the device for `number` calls, whether it woke before all were queued: then some are the host's)."""
    torch = load("torch")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    # For as long as the host takes to queue the calls, and somewhat more.
    cycles_per_second = 1e3 * load("cupy").cuda.Device().attributes["ClockRate"]
    sleep = int(cycles_per_second * (1.5 * host_seconds(call, number) + 200e-6))
    torch.cuda.synchronize()
    torch.cuda._sleep(sleep)
    start.record()
    for _ in range(number):
        call()
    end.record()
    late = start.query()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, late


def host_seconds(call: Call, number: int) -> float:
    """Seconds of the host for `number` calls that are not waited for, unless they wait themselves."""
    queued = min(number, MOST_QUEUED)
    load("torch").cuda.synchronize()
    start = perf_counter()
    for _ in range(queued):
        call()
    return (perf_counter() - start) * number / queued


def synchronised_seconds(call: Call, number: int) -> float:
    """Seconds for `number` calls, each of which is waited for."""
    load("torch").cuda.synchronize()
    start = perf_counter()
    for _ in range(number):
        call()
        load("torch").cuda.synchronize()
    return perf_counter() - start


CLOCKS = {"device time": device_seconds, "host time": host_seconds, "wall time": synchronised_seconds}


# ----------------------------------------------------------------------------------------------------------- sides


def measured_rows(
    table: str,
    name: str,
    inputs: str,
    arrays: Arrays,
    functions: Mapping[str, Function],
    check: Callable[[Any, Any], str] | None,
    size: int | None = None,
) -> Iterator[Row]:
    """A row for each clock. `functions` get the arrays as the name of the side says: CuPy's, or torch's tensors."""
    copies = copies_past(_l2_bytes(), sum(array.nbytes for array in arrays.values()))
    for_cupy = [on_gpu(arrays) for _ in range(copies)]
    for_torch = [as_tensors(each) for each in for_cupy]
    sides: dict[str, Call] = {}
    for side, function in functions.items():
        each = for_torch if "torch" in side else for_cupy
        sides[side] = in_turns([partial(function, given) for given in each])
    for clock_name, clock in CLOCKS.items():
        yield Row(
            table=f"{table}, {clock_name}",
            name=name,
            inputs=f"{inputs}, {copies} copies in turns",
            sides=sides,
            check=check and (lambda expected, got: check(to_host(expected), to_host(got))),
            size=size,
            clock=clock,
        )


def copies_past(cache_bytes: int, input_bytes: int) -> int:
    """How many copies of the inputs are twice as large as the cache; two at least."""
    return min(max(2, -(-2 * cache_bytes // max(1, input_bytes))), MOST_COPIES)


def in_turns(calls: Sequence[Call]) -> Call:
    """A call that makes one of `calls` after the other, over and over again."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def on_gpu(arrays: Arrays) -> Arrays:
    """Copies of NumPy arrays as CuPy's."""
    return {name: load("cupy").array(array) for name, array in arrays.items()}


def as_tensors(arrays: Arrays) -> Arrays:
    """CuPy arrays as torch tensors on the same memory."""
    return {name: load("torch").from_dlpack(array) for name, array in arrays.items()}


def to_host(result: Any) -> Any:
    """What a side returns as NumPy arrays."""
    if isinstance(result, tuple | list):
        return tuple(map(to_host, result))
    if hasattr(result, "detach"):
        return result.detach().cpu().numpy()
    return result.get() if hasattr(result, "get") else result


def both(function: Function) -> dict[str, Function]:
    """The sides of cvops: on CuPy arrays, and on tensors."""
    return {"cvops": function, "cvops, torch tensors": function}


def gradient(forward: Function, names: Sequence[str]) -> Function:
    """The gradient of a torch function with respect to the tensors of these names, given that of its result as `grad`.

    The forward pass of each copy of the inputs runs once, untimed, at the first call.
    """
    results: dict[int, tuple[Any, list[Any]]] = {}

    def backward(arrays: Arrays) -> Any:
        if id(arrays) not in results:
            leaves = {name: arrays[name].detach().requires_grad_() for name in names}
            results[id(arrays)] = forward({**arrays, **leaves}), list(leaves.values())
        result, leaves_of_result = results[id(arrays)]
        return load("torch").autograd.grad(result, leaves_of_result, arrays["grad"], retain_graph=True)

    return backward


def _l2_bytes() -> int:
    return int(load("cupy").cuda.Device().attributes["L2CacheSize"])


# ------------------------------------------------------------------------------------------------------------- rows


def nms_rows(n: int) -> Iterator[Row]:
    boxes, scores, _ = clustered(n)
    arrays = {"boxes": boxes, "scores": scores}

    def padded(given: Arrays) -> Any:
        indices, count = cvops.nms(given["boxes"], given["scores"], 0.5, padded=True)
        return indices, count

    def peer(given: Arrays) -> Any:
        return load("torchvision").ops.nms(given["boxes"], given["scores"], 0.5)

    sides = both(lambda given: cvops.nms(given["boxes"], given["scores"], 0.5))
    sides |= {"cvops, padded": padded, "cvops, padded, torch tensors": padded, "torchvision": peer}
    check = of_padded(same_indices(scores))
    yield from measured_rows("nms, threshold 0.5", f"{n:,} boxes", f"clustered({n})", arrays, sides, check, n)


def batched_nms_rows(n: int) -> Iterator[Row]:
    boxes, scores, idxs = clustered(n)
    arrays = {"boxes": boxes, "scores": scores, "idxs": idxs}

    def padded(given: Arrays) -> Any:
        return cvops.batched_nms(given["boxes"], given["scores"], given["idxs"], 0.5, padded=True)

    def peer(given: Arrays) -> Any:
        return load("torchvision").ops.batched_nms(given["boxes"], given["scores"], given["idxs"], 0.5)

    sides = both(lambda given: cvops.batched_nms(given["boxes"], given["scores"], given["idxs"], 0.5))
    sides |= {"cvops, padded": padded, "cvops, padded, torch tensors": padded, "torchvision": peer}
    table = "batched_nms, 80 classes, threshold 0.5"
    check = of_padded(same_indices(scores))
    yield from measured_rows(table, f"{n:,} boxes", f"clustered({n})", arrays, sides, check, n)


def multiclass_nms_rows(head: heads.Head) -> Iterator[Row]:
    """Beside a loop over the images with torchvision's batched_nms, which reads a length for each."""
    boxes, scores = heads.inputs(head)
    options: dict[str, Any] = {
        "score_threshold": head.floor,
        "max_candidates": head.candidates,
        "max_output": heads.MOST,
    }

    def select(given: Arrays, **more: Any) -> Any:
        in_order = given["scores"].swapaxes(1, 2)
        return cvops.multiclass_nms(given["boxes"], in_order, head.iou_threshold, **options, **more)

    def padded(given: Arrays) -> Any:
        return select(given, padded=True)

    def peer(given: Arrays) -> Any:
        limits = head.floor, head.iou_threshold, head.candidates
        return detections_by_torchvision(given["boxes"], given["scores"], *limits)

    sides = both(select)
    sides |= {"cvops, padded": padded, "cvops, padded, torch tensors": padded, "torchvision": peer}

    def check(expected: Any, got: Any) -> str:
        return heads.same_detections(rows_of(expected), rows_of(got))

    yield from measured_rows(heads.TABLE, str(head), head.inputs, {"boxes": boxes, "scores": scores}, sides, check)


def rows_of(detections: Any) -> Any:
    """Rows (image, box, class) of what multiclass_nms returns, padded or not, or of such rows."""
    if not isinstance(detections, tuple):
        return detections
    if detections[0].ndim == 1:
        return np.stack(detections, 1)
    box, label, count = detections
    image, place = np.nonzero(np.arange(box.shape[1]) < count[:, None])
    return np.stack([image, box[image, place], label[image, place]], 1)


def decode_boxes_rows(n: int) -> Iterator[Row]:
    """Torchvision's decoder of its R-CNN heads, whose deltas have weights as here."""
    weights = 10.0, 10.0, 5.0, 5.0
    deltas = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    arrays = {"deltas": deltas, "anchors": clustered(n)[0]}

    def peer(given: Arrays) -> Any:
        coder = load("torchvision.models.detection._utils").BoxCoder(weights)
        return coder.decode_single(given["deltas"], given["anchors"])

    sides = both(lambda given: cvops.decode_boxes(given["deltas"], given["anchors"], weights=weights))
    sides["torchvision"] = peer
    inputs = f"normal deltas, clustered({n})"
    yield from measured_rows("decode_boxes", f"{n:,} boxes", inputs, arrays, sides, all_close_to_largest, n)


def of_padded(check: Callable[[Any, Any], str]) -> Callable[[Any, Any], str]:
    """The check for indices that may come with their number, -1 behind them."""

    def of_indices(expected: Any, got: Any) -> str:
        if isinstance(got, tuple):
            got = got[0][: int(got[1])]
        return check(expected, got)

    return of_indices


def roi_rows(operator: str, case: Case, *options: Any) -> Iterator[Row]:
    """Forward and backward of an operator on one map."""
    forward, backward = getattr(cvops, operator), getattr(cvops, f"{operator}_backward")
    arrays = {"maps": case.maps(), "boxes": case.boxes()}

    def peer(given: Arrays) -> Any:
        function = getattr(load("torchvision").ops, operator)
        return function(given["maps"], given["boxes"], case.bins, case.scale, *options)

    sides = both(lambda given: forward(given["maps"], given["boxes"], case.bins, case.scale, *options))
    sides["torchvision"] = peer
    yield from measured_rows(operator, str(case), case.inputs, arrays, sides, all_close_to_largest)

    channels = case.shape[1] // (case.bins**2 if operator.startswith("ps_") else 1)
    arrays["grad"] = uniform((case.rois, channels, case.bins, case.bins), seed=1)
    if operator == "roi_pool":
        maps, boxes = on_gpu(arrays)["maps"], on_gpu(arrays)["boxes"]
        arrays["argmax"] = to_host(forward(maps, boxes, case.bins, case.scale, return_argmax=True)[1])

    def of_cvops(given: Arrays) -> Any:
        argmax = [given["argmax"]] if "argmax" in given else []
        return (backward(given["grad"], given["boxes"], *argmax, case.shape, case.scale, *options),)

    sides = both(of_cvops)
    sides["torchvision"] = gradient(peer, ["maps"])
    # torchvision's gradient of ps_roi_pool is another one: see the notes of cvops.ps_roi_pool_backward.
    check = None if operator == "ps_roi_pool" else all_close_to_largest
    yield from measured_rows(f"{operator}, gradient", str(case), case.inputs, arrays, sides, check)


def pooler_rows(height: int, width: int, channels: int, boxes: int) -> Iterator[Row]:
    """The pooler on four levels of a pyramid."""
    levels = [f"p{level}" for level in range(2, 6)]
    shapes = {name: (1, channels, height >> i, width >> i) for i, name in enumerate(levels, start=2)}
    arrays: dict[str, Array] = {name: uniform(shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    arrays |= {"boxes": pyramid_boxes(boxes, height, width), "grad": uniform((boxes, channels, 7, 7), seed=1)}
    pool = cvops.MultiScaleRoIAlign(levels, 7, 2)

    def maps_of(given: Arrays) -> dict[str, Any]:
        return {name: given[name] for name in levels}

    def peer(given: Arrays) -> Any:
        pooler = load("torchvision").ops.MultiScaleRoIAlign(levels, 7, 2)
        return pooler(maps_of(given), [given["boxes"]], [(height, width)])

    def of_cvops(given: Arrays) -> Any:
        return tuple(pool.backward(given["grad"], maps_of(given), [given["boxes"]], [(height, width)]).values())

    name = f"4 levels of {height} x {width}, C = {channels}, {boxes} boxes"
    inputs = f"uniform maps, pyramid_boxes({boxes}, {height}, {width})"
    sides = both(lambda given: pool(maps_of(given), [given["boxes"]], [(height, width)]))
    sides["torchvision"] = peer
    yield from measured_rows("MultiScaleRoIAlign", name, inputs, arrays, sides, all_close_to_largest)
    sides = both(of_cvops)
    sides["torchvision"] = gradient(peer, levels)
    yield from measured_rows("MultiScaleRoIAlign, gradient", name, inputs, arrays, sides, all_close_to_largest)


def network_rows(height: int, width: int) -> Iterator[Row]:
    """The pyramid network; torch's convolutions shorten float32 to TF32 on both sides, if its flag says so."""
    torch, operators = load("torch"), load("torchvision").ops
    arrays = {
        f"p{level}": uniform((1, channels, height >> level, width >> level), seed=level)
        for level, channels in enumerate(CHANNELS, start=2)
    }
    network = cvops.FeaturePyramidNetwork(CHANNELS, 256)
    torchvision_network = operators.FeaturePyramidNetwork(CHANNELS, 256)
    torchvision_network.load_state_dict({n: torch.from_numpy(array) for n, array in network.state_dict().items()})
    torchvision_network = torchvision_network.cuda().eval()

    def peer(given: Arrays) -> Any:
        with torch.no_grad():
            return tuple(torchvision_network(dict(given)).values())

    sides = both(lambda given: tuple(network(given).values()))
    sides["torchvision"] = peer
    inputs = "uniform maps and Kaiming weights"
    yield from measured_rows("FeaturePyramidNetwork, 256 channels", f"{height} x {width}", inputs, arrays, sides, None)


def deform_conv2d_rows(shape: tuple[int, int, int, int, int], dtype: str) -> Iterator[Row]:
    images, _, height, width, outputs = shape
    arrays = {name: array.astype(dtype) for name, array in deformed(*shape).items()}
    arrays["grad"] = np.random.default_rng(1).normal(0, 1, (images, outputs, height, width)).astype(dtype)
    names = ["input", "offset", "weight", "bias", "mask"]

    def given_names(given: Arrays) -> dict[str, Any]:
        return {name: given[name] for name in names}

    def peer(given: Arrays) -> Any:
        return load("torchvision").ops.deform_conv2d(**given_names(given), padding=1)

    name, inputs = f"{name_of_shape(shape)}, {dtype}", f"deformed{shape}, {dtype}"
    # Sums of 16-bit products differ by more than the check for float32 allows.
    forward_check, backward_check = (all_close_to_largest, all_close_to_largest) if dtype == "float32" else (None, None)
    sides = both(lambda given: cvops.deform_conv2d(**given_names(given), padding=1))
    sides["torchvision"] = peer
    yield from measured_rows("deform_conv2d, 3x3, with mask", name, inputs, arrays, sides, forward_check)
    sides = both(lambda given: cvops.deform_conv2d_backward(given["grad"], **given_names(given), padding=1))
    sides["torchvision"] = gradient(peer, names)
    table = "deform_conv2d_backward, 3x3, all five gradients"
    yield from measured_rows(table, name, inputs, arrays, sides, backward_check)
