"""Draw time against size from a results file. `python -m benchmarks.plot benchmarks/results/nms.json` redraws one."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

# From the palette of Okabe and Ito, and grey: colour-blind readers tell them apart too.
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#7F7F7F", "#E69F00", "#56B4E9", "#8C564B", "#B8A000"]
INK, FAINT = "#444444", "#E4E4E4"


def draw(results: Path) -> Path | None:
    """Draw a panel for each table with a range of sizes, beside the results file; None where there is no such table."""
    contents = json.loads(results.read_text())
    sized = (row for row in contents["rows"] if row.get("size"))
    tables = {table: list(rows) for table, rows in groupby(sized, key=lambda row: row["table"])}
    tables = {table: rows for table, rows in tables.items() if len(rows) > 1}
    if not tables:
        return None
    figure = Figure(figsize=(5.2 * len(tables), 4.2), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for panel, (table, rows) in zip(panels, tables.items(), strict=True):
        draw_panel(panel, rows)
        panel.set_title(table, loc="left", fontsize=11, color=INK, pad=10)
    environment, threads = contents["environment"], contents["settings"]["threads"]
    figure.supxlabel(f"number of boxes  ({environment['cpu']}, threads: {threads})", fontsize=9, color=INK)
    picture = results.with_suffix(".png")
    figure.savefig(picture, dpi=160)
    return picture


def draw_panel(panel: Axes, rows: list[dict[str, Any]]) -> None:
    sides = list(rows[0]["milliseconds"])
    for side, colour in zip(sides, COLOURS, strict=False):
        points = [(row["size"], row["milliseconds"][side] / 1e3) for row in rows if side in row["milliseconds"]]
        first = side == sides[0]
        panel.plot(
            *zip(*points, strict=True),
            marker="o",
            color=colour,
            linewidth=2.8 if first else 1.6,
            markersize=5.5 if first else 4,
            zorder=3 if first else 2,
            label=side,
        )
    panel.set(xscale="log", yscale="log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    panel.yaxis.set_major_formatter(FuncFormatter(duration))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_locator(NullLocator())
    panel.grid(color=FAINT)
    panel.tick_params(length=0, labelsize=9, labelcolor=INK)
    panel.spines[:].set_visible(False)
    panel.legend(frameon=False, fontsize=9.5, labelcolor="linecolor", loc="upper left")


def duration(seconds: float, _: int) -> str:
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds > 0.99 * unit:  # 10**-3 may arrive a little less
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds * 1e9:,.0f} ns"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(draw(Path(argument)))
