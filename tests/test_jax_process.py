"""cvops.jax and the life of a process: its end, a second import, and programs that another process wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("jax")


def run(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize("left", ["kept", "dropped", "dropped by a thread"])
def test_a_process_ends_while_jax_computes(left):
    """JAX waits for its programs when the interpreter ends, and does not let their calls of Python through then."""
    code = """
import sys, threading
import jax, jax.numpy as jnp, numpy as np
import cvops.jax

rois = np.array([[0, 0.0, 0.0, 90.0, 90.0]] * 16, "f")

@jax.jit
def program(maps):
    for _ in range(30):
        maps = maps + cvops.jax.roi_align(maps, rois, 7).mean()
    return maps

maps = jnp.ones((1, 64, 100, 100))
jax.block_until_ready(program(maps))
kept = []

def start(left):
    results = [program(maps) for _ in range(4)]
    if left == "kept":
        kept.extend(results)

if sys.argv[1].endswith("thread"):
    thread = threading.Thread(target=start, args=sys.argv[1:])
    thread.start()
    thread.join()
else:
    start(sys.argv[1])
print("end")
"""
    assert run(code, left) == ["end"]


def test_a_second_import():
    """Programs compiled before it still run, and names of XLA stay, behind which are the functions imported last."""
    code = """
import gc, importlib, sys
import jax, jax.numpy as jnp, numpy as np
import cvops.jax

maps, rois = jnp.arange(64.0).reshape(1, 1, 8, 8), np.array([[0, 0.0, 0.0, 6.0, 6.0]], "f")
boxes, scores = rois[:, 1:], jnp.ones(1)

def program():
    import cvops.jax as ops
    return jax.jit(jax.value_and_grad(lambda maps: ops.roi_align(maps, rois, 2).sum())), jax.jit(
        lambda boxes: ops.nms(boxes, scores, 0.5, max_output=1)
    )

pool, suppress = program()
want, kept = pool(maps), suppress(boxes)
names = sorted(jax.ffi._cvops_functions)
for _ in range(2):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cvops"]:
        del sys.modules[name]
    cvops = None
    gc.collect()
    jax.clear_caches()
    import cvops.jax
    assert sorted(jax.ffi._cvops_functions) == names
    again = program()
    for one, two in (pool, suppress), again:
        for got, right in zip(jax.tree.leaves((one(maps), two(boxes))), jax.tree.leaves((want, kept)), strict=True):
            assert (got == right).all()
    assert jax.ffi._cvops_functions["cvops.roi_align"][0] is cvops.roi_align
print(*names)
"""
    operators = ["deform_conv2d", "multiscale_roi_align", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool"]
    names = ["batched_nms", "multiclass_nms", "nms", *operators, *(name + "_backward" for name in operators)]
    assert run(code) == sorted("cvops." + name for name in names)  # exported programs hold them: they never change


def test_a_call_before_jax_has_a_device_and_none_at_all():
    assert run("import cvops.jax; print('imported')") == ["imported"]


def test_an_exported_program_runs_in_another_process(tmp_path):
    common = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
import cvops.jax

random = np.random.default_rng(3)
maps, boxes = random.random((1, 8, 9, 9), "f"), np.array([[0, 0, 5, 6], [1, 1, 6, 6], [3, 2, 8, 8.0]], "f")
scores = random.random(3, "f")
offset, weight = random.random((1, 18, 9, 9), "f"), random.random((8, 8, 3, 3), "f")

def loss(maps, boxes, offset, weight):
    maps = cvops.jax.deform_conv2d(maps, offset, weight, padding=1)
    pool = cvops.jax.MultiScaleRoIAlign(["map"], 2, 2)({"map": maps}, [boxes], [(9, 9)])
    return cvops.jax.roi_align(maps, [boxes], 3, aligned=True).sum() + cvops.jax.roi_pool(maps, [boxes], 2).max() + (
        pool.mean() + cvops.jax.ps_roi_align(maps, [boxes], 2).sum()
    )

def program(maps, boxes, scores, offset, weight):
    keep, count = cvops.jax.nms(boxes, scores, 0.3, max_output=3)
    return keep, count, jax.value_and_grad(loss, (0, 1, 2, 3))(maps, boxes, offset, weight)

arguments = maps, boxes, scores, offset, weight
"""
    write = """
operators = "nms", "roi_align", "roi_pool", "ps_roi_align", "multiscale_roi_align", "deform_conv2d"
names = [name for operator in operators for name in ("cvops." + operator, "cvops." + operator + "_backward")]
allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
exported = jax.export.export(jax.jit(program), disabled_checks=allowed)(*arguments)
pathlib.Path(sys.argv[1]).write_bytes(exported.serialize())
print("written")
"""
    read = """
exported = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
for got, want in zip(jax.tree.leaves(jax.jit(exported.call)(*arguments)), jax.tree.leaves(program(*arguments))):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
print("read")
"""
    path = tmp_path / "program"
    assert run(common + "import jax.export" + write, path) == ["written"]
    assert run(common + "import jax.export" + read, path) == ["read"]
