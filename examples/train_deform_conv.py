"""A deformable convolution learns where to look: it finds out by which twist its targets were made of its inputs.

    pip install torch ".[demo]"
    python examples/train_deform_conv.py
    python examples/train_deform_conv.py --steps 600 --out learned.png

Each input is a random texture, each target the same texture twisted around its centre. A few ordinary convolutions over
the coordinates of the pixels say where each pixel of the output shall be read from; `cvops.torch.DeformConv2d` reads
there, and its gradients train both. The picture shows the loss, what was learned as arrows beside the truth, and one
texture before, after and as it should be.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
from detect import OneLineParser, page, picture_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 48  # pixels of a texture
TWIST = 0.9  # radians at the centre
BATCH = 8
PANEL = 288  # pixels of a side of a picture


def main() -> None:
    parser = OneLineParser("Train a small network with a deformable convolution; draw what it has learned.")
    add = parser.add_argument
    add("--steps", type=steps, default=400, help="training steps, 1 or more (default: %(default)s)")
    add(
        "--out",
        type=picture_path,
        default="train_deform_conv.png",
        help="picture to write: .png or .jpg (default: %(default)s)",
    )
    options = parser.parse_args()
    parser.need("torch")

    start = time.perf_counter()
    losses, offsets, sample = train(options.steps)
    seconds = time.perf_counter() - start
    truth = twist()
    try:
        draw(losses, offsets, truth, sample).save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")
    miss = np.abs(offsets - truth).mean()
    print(f"{options.steps} steps in {seconds:.1f} s, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    print(f"offsets: {np.abs(truth).mean():.2f} pixels on average, learned to {miss:.2f}; picture: {options.out}")


def steps(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def train(count: int) -> tuple[list[float], NDArray[Any], list[NDArray[Any]]]:
    """Return the losses, the learned offsets (2, SIDE, SIDE), and one texture with the output and the target for it."""
    import torch
    from torch import nn

    import cvops.torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # maps as small as these are not worth more
    lines = torch.linspace(-1, 1, SIDE)
    coordinates = torch.stack(torch.meshgrid(lines, lines, indexing="ij"))[None]
    last = nn.Conv2d(32, 2, 1)
    look = nn.Sequential(nn.Conv2d(2, 32, 1), nn.SiLU(), nn.Conv2d(32, 32, 1), nn.SiLU(), last)  # (y, x) -> offset
    read = cvops.torch.DeformConv2d(1, 1, kernel_size=1)
    nn.init.zeros_(last.weight)  # at first it looks at the regular places
    nn.init.constant_(read.weight, 0.5)
    truth = torch.from_numpy(twist())[None]
    optimiser = torch.optim.Adam([*look.parameters(), *read.parameters()], lr=0.005)
    losses = []
    for step in range(count + 1):
        textures = smooth_noise(BATCH, step)
        targets = cvops.torch.deform_conv2d(textures, truth.expand(BATCH, -1, -1, -1), torch.ones(1, 1, 1, 1))
        offsets = look(coordinates)
        outputs = read(textures, offsets.expand(BATCH, -1, -1, -1))
        loss = nn.functional.mse_loss(outputs, targets)
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step} of {count}: loss {losses[-1]:.4f}", flush=True)
        if step < count:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    sample = [batch[0, 0].detach().numpy() for batch in (textures, outputs, targets)]
    return losses, offsets[0].detach().numpy(), sample


def smooth_noise(count: int, seed: int) -> Any:
    """Random textures (count, 1, SIDE, SIDE) whose features are some pixels wide."""
    import torch

    coarse = torch.randn(count, 1, SIDE // 6, SIDE // 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic", align_corners=True)


def twist() -> NDArray[Any]:
    """The offsets (dy, dx) of a rotation that fades out towards the border, float32 (2, SIDE, SIDE)."""
    middle = (SIDE - 1) / 2
    y, x = np.mgrid[:SIDE, :SIDE] - middle
    angle = TWIST * np.cos(np.clip(np.hypot(y, x) / middle, 0, 1) * math.pi / 2) ** 2
    turned = np.stack([y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)])
    return (turned - np.stack([y, x])).astype(np.float32)


def draw(losses: list[float], learned: NDArray[Any], truth: NDArray[Any], sample: list[NDArray[Any]]) -> Image.Image:
    """Return one page of two rows: loss, learned and true offsets; input, output and target."""
    panels = {
        "loss (logarithmic) by step": curve(losses),
        "offsets, learned": arrows(learned),
        "offsets, true": arrows(truth),
        "input": texture(sample[0]),
        "output": texture(sample[1]),
        "target": texture(sample[2]),
    }
    return page(panels, columns=3)


def curve(losses: list[float]) -> Image.Image:
    panel = Image.new("RGB", (PANEL, PANEL), (246, 246, 246))
    pen, font = ImageDraw.Draw(panel), ImageFont.load_default(13)
    heights = np.log10(np.maximum(losses, 1e-12))
    low, high = math.floor(heights.min()), max(math.ceil(heights.max()), math.floor(heights.min()) + 1)
    for power in range(low, high + 1):
        y = (high - power) / (high - low) * (PANEL - 1)
        pen.line((0, y, PANEL, y), fill=(210, 210, 210))
        pen.text((4, min(y + 2, PANEL - 18)), f"{10.0**power:g}", fill=(120, 120, 120), font=font)
    across = np.linspace(0, PANEL - 1, len(heights))
    down = (high - heights) / (high - low) * (PANEL - 1)
    pen.line([*zip(across.tolist(), down.tolist(), strict=True)], fill=(180, 30, 60), width=2)
    return panel


def arrows(offsets: NDArray[Any]) -> Image.Image:
    """Return where pixels are read from: a line from every fourth pixel, with a dot at the end."""
    panel = Image.new("RGB", (PANEL, PANEL), (246, 246, 246))
    pen, scale = ImageDraw.Draw(panel), PANEL / SIDE
    for y in range(2, SIDE, 4):
        for x in range(2, SIDE, 4):
            dy, dx = offsets[:, y, x]
            from_x, from_y, to_x, to_y = (scale * (value + 0.5) for value in (x, y, x + dx, y + dy))
            pen.line((from_x, from_y, to_x, to_y), fill=(40, 90, 170), width=1)
            pen.ellipse((to_x - 2, to_y - 2, to_x + 2, to_y + 2), fill=(180, 30, 60))
    return panel


def texture(values: NDArray[Any]) -> Image.Image:
    grey = np.clip((values + 2) / 4, 0, 1) * 255
    return Image.fromarray(grey.astype(np.uint8)).resize((PANEL, PANEL), Image.Resampling.NEAREST).convert("RGB")


if __name__ == "__main__":
    main()
