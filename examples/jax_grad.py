"""Gradient descent through `cvops.jax.deform_conv2d` under jax.jit: learn to straighten a photograph that was twisted.

    pip install ".[demo]" jax
    python examples/jax_grad.py
    python examples/jax_grad.py --steps 400 --out straightened.png

A deformable convolution with one tap of weight 1 moves pixels: each reads at its place plus an offset. The program
learns the offsets, on a coarse grid that is enlarged smoothly, from nothing but the photograph and its twisted copy. It
draws the photograph, the twisted copy, the copy after learning, and which way the pixels were moved.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detect import OneLineParser, page, picture_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw

if TYPE_CHECKING:  # --help is there without JAX
    import jax

PHOTOGRAPH = Path(__file__).parent / "data" / "ssd_coco_astronaut.npz"
SIDE = 160  # pixels of the square that is learned from
GRID = 9  # offsets learned along each axis
RATE = 0.3  # pixels by which Adam moves an offset in a step, about
BEND = 1e-6  # what it costs that neighbouring offsets differ, so that the whole moves before the details
ARROWS = 10  # pixels from one arrow to the next in the picture
SCALE = 2  # of the picture


def main() -> None:
    parser = OneLineParser("Learn to straighten a twisted photograph, and draw the result.")
    add = parser.add_argument
    add("--steps", type=positive, default=150, help="steps of gradient descent, 1 or more (default: %(default)s)")
    add(
        "--out",
        type=picture_path,
        default="jax_grad.png",
        help="picture to write: .png or .jpg (default: %(default)s)",
    )
    options = parser.parse_args()
    parser.need("jax")

    photograph = read_photograph()
    twisted = moved(photograph, twist())
    grid, losses, seconds = learn(photograph, twisted, options.steps)
    straightened = moved(twisted, enlarged(grid))
    try:
        draw(photograph, twisted, straightened, np.asarray(enlarged(grid))).save(options.out)
    except OSError as error:
        parser.error(f"argument --out: {options.out}: {error.strerror or error}")
    print(f"loss: {losses[0]:.5f} before, {losses[-1]:.5f} after {options.steps} steps")
    print(f"{1e3 * seconds / options.steps:.1f} ms a step; picture: {options.out}")


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return value


def read_photograph() -> jax.Array:
    """The middle of the upper half, (1, 3, SIDE, SIDE), from 0 to 1."""
    import jax.numpy as jnp

    with np.load(PHOTOGRAPH) as archive:
        picture = Image.open(io.BytesIO(archive["image_jpeg"].tobytes())).convert("RGB")
    width = picture.width
    part = picture.crop((width // 5, 0, width // 5 + 3 * width // 5, 3 * width // 5)).resize((SIDE, SIDE))
    return jnp.asarray(np.asarray(part, np.float32).transpose(2, 0, 1)[None] / 255)


def twist() -> jax.Array:
    """Offsets (1, 2, SIDE, SIDE), y then x, that turn the middle of a picture."""
    import jax.numpy as jnp

    y, x = jnp.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    angle = 0.5 * jnp.exp(-(x**2 + y**2) / (0.3 * SIDE) ** 2)
    return jnp.stack([y * jnp.cos(angle) - x * jnp.sin(angle) - y, y * jnp.sin(angle) + x * jnp.cos(angle) - x])[None]


def moved(pictures: jax.Array, offset: jax.Array) -> jax.Array:
    """The pictures, each pixel read at its place plus its offset."""
    import jax.numpy as jnp

    import cvops.jax

    one_tap = jnp.eye(3).reshape(3, 3, 1, 1)
    return cvops.jax.deform_conv2d(pictures, offset, one_tap)


def enlarged(grid: jax.Array) -> jax.Array:
    """A coarse grid of offsets as offsets for every pixel."""
    import jax

    return jax.image.resize(grid, (1, 2, SIDE, SIDE), "cubic")


def learn(photograph: jax.Array, twisted: jax.Array, steps: int) -> tuple[jax.Array, list[float], float]:
    """Return the grid of offsets that straightens, the loss before each step and after all, and the seconds taken."""
    import jax
    import jax.numpy as jnp

    def loss(grid: jax.Array) -> jax.Array:
        bends = jnp.diff(grid, axis=2), jnp.diff(grid, axis=3)
        difference = moved(twisted, enlarged(grid)) - photograph
        return (difference**2).mean() + BEND * sum((bend**2).sum() for bend in bends)

    def step(grid: jax.Array, mean: jax.Array, square: jax.Array, count: jax.Array) -> tuple[jax.Array, ...]:
        """One step of Adam (D. Kingma and J. Ba, 2015)."""
        value, slope = jax.value_and_grad(loss)(grid)
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        change = mean / (1 - 0.9**count) / (jnp.sqrt(square / (1 - 0.99**count)) + 1e-8)
        return grid - RATE * change, mean, square, value

    step = jax.jit(step)
    grid = mean = square = jnp.zeros((1, 2, GRID, GRID))
    step(grid, mean, square, jnp.ones(()))  # the first call compiles
    losses, start = [], time.perf_counter()
    for count in range(1, steps + 1):
        grid, mean, square, value = step(grid, mean, square, jnp.asarray(float(count)))
        losses.append(float(value))
        if count % 25 == 1:
            print(f"step {count} of {steps}: loss {losses[-1]:.5f}", flush=True)
    return grid, [*losses, float(loss(grid))], time.perf_counter() - start


def draw(photograph: jax.Array, twisted: jax.Array, straightened: jax.Array, offset: NDArray[Any]) -> Image.Image:
    """Return the pictures side by side, and the offsets as lines from where a pixel is to where it was read."""
    side = SCALE * SIDE
    pictures = {"photograph": photograph, "twisted": twisted, "straightened by what was learned": straightened}
    panels = {
        caption: to_image(np.asarray(picture)).resize((side, side), Image.Resampling.BICUBIC)
        for caption, picture in pictures.items()
    }
    panels["offsets learned; dots: where pixels are read"] = arrows = Image.new("RGB", (side, side), (246, 246, 246))
    pen = ImageDraw.Draw(arrows)
    for y in range(ARROWS // 2, SIDE, ARROWS):
        for x in range(ARROWS // 2, SIDE, ARROWS):
            begin = (SCALE * x, SCALE * y)
            end = (begin[0] + SCALE * float(offset[0, 1, y, x]), begin[1] + SCALE * float(offset[0, 0, y, x]))
            pen.line((begin, end), (13, 60, 140), 1)
            pen.ellipse((end[0] - 1.5, end[1] - 1.5, end[0] + 1.5, end[1] + 1.5), (200, 40, 40))
    return page(panels, columns=4)


def to_image(picture: NDArray[Any]) -> Image.Image:
    return Image.fromarray((255 * picture[0].transpose(1, 2, 0)).round().clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
