"""`cvops.torch` imported a second time in a process, as by hot reload, plug-in hosts and test runners."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import torch_calls

pytestmark = torch_calls.quiet

BEFORE = """
import importlib, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message=".*torch.jit")
import torch
import cvops.torch
from tests import torch_calls

old = cvops.torch
NAMES = sorted(torch_calls.CALLS)
answers = {name: getattr(old, name)(*torch_calls.tensors(name)) for name in NAMES}

def same(module):
    for name in NAMES:
        got = getattr(module, name)(*torch_calls.tensors(name))
        assert torch.equal(got, answers[name]), name

def gradients(module):
    found = []
    for name in (*torch_calls.POOLING, "deform_conv2d", "complete_box_iou"):
        args = torch_calls.tensors(name)
        getattr(module, name)(args[0].requires_grad_(), *args[1:]).sin().sum().backward()
        found.append(args[0].grad)
    return found

def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "cvops"]:
        del sys.modules[name]

want = gradients(old)
"""

CASES = {
    "values and gradients": """
forget()
new = importlib.import_module("cvops.torch")
assert new is not old and new.nms is not old.nms
for module in (new, old, new):
    same(module)
    assert all(map(torch.equal, gradients(module), want))
""",
    "thrice, and the first is dropped": """
import gc
for _ in range(3):
    forget()
    del old
    gc.collect()
    old = importlib.import_module("cvops.torch")
    same(old)
    assert all(map(torch.equal, gradients(old), want))
""",
    "reload": """
for name in ("_library", "_nms", "_roi", "_multiscale_roi_align", "_deform_conv", "_boxes", "_multiclass", "_replace"):
    importlib.reload(sys.modules[f"cvops.torch.{name}"])
importlib.reload(cvops.torch)
same(cvops.torch)
assert all(map(torch.equal, gradients(cvops.torch), want))
""",
    "what was scripted before": """
scripts = {name: torch.jit.script(getattr(old, name)) for name in NAMES}
for name in NAMES:
    scripts[name](*torch_calls.tensors(name))
module = torch.jit.script(old.RoIAlign((2, 3), 0.5, 2, True))
forget()
new = importlib.import_module("cvops.torch")
for name in NAMES:
    assert torch.equal(scripts[name](*torch_calls.tensors(name)), answers[name])
    assert torch.equal(torch.jit.script(getattr(new, name))(*torch_calls.tensors(name)), answers[name])
other = torch.jit.script(new.RoIAlign((2, 3), 0.5, 2, True))
maps, rois, *_ = torch_calls.tensors("roi_align")
assert torch.equal(module(maps, rois), other(maps, rois))
""",
    "what was compiled before": """
warnings.simplefilter("default")  # dynamo warns of itself
compiled = torch.compile(lambda *args: old.roi_align(*args).relu(), backend="aot_eager", fullgraph=True)
args = torch_calls.tensors("roi_align")
before = compiled(*args)
forget()
new = importlib.import_module("cvops.torch")
assert torch.equal(compiled(*args), before)
again = torch.compile(lambda *args: new.roi_align(*args).relu(), backend="aot_eager", fullgraph=True)
assert torch.equal(again(*args), before)
half = [arg.half() if isinstance(arg, torch.Tensor) else arg for arg in args]
assert torch.equal(compiled(*half), new.roi_align(*half).relu())
boxes = torch.rand(2, 5, 4)
assert torch.func.vmap(new.box_iou)(boxes, boxes).shape == (2, 5, 5)
""",
    "number of threads": """
forget()
new, backend = importlib.import_module("cvops.torch"), importlib.import_module("cvops._cpu")
calls = []
ps_roi_align = backend.ps_roi_align
backend.ps_roi_align = lambda *args: calls.append(1) or ps_roi_align(*args)
old.ps_roi_align(*torch_calls.tensors("ps_roi_align"))
new.ps_roi_align(*torch_calls.tensors("ps_roi_align"))
assert len(calls) == 2  # the operators are those of the last import, with its settings
""",
}


@pytest.mark.parametrize("case", CASES)
def test_a_second_import(tmp_path, case, torch):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + CASES[case]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_another_version_says_so(tmp_path, torch):
    code = """
import torch
library = torch.library.Library("cvops", "FRAGMENT")
library.define("nms(Tensor boxes, Tensor scores) -> Tensor")
try:
    import cvops.torch
except ImportError as error:
    print(error)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "another version of cvops.torch has registered cvops::nms in this process: restart it\n"
