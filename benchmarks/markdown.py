"""The README's tables from the results files: `python -m benchmarks.markdown benchmarks/results/*.json`."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from .harness import three_digits


def tables(results: dict[str, Any]) -> str:
    """One table for each of the suite's tables whose rows compare cvops with peers."""
    rows = [row for row in results["rows"] if "cvops" in row.get("milliseconds", {}) and len(row["milliseconds"]) > 1]
    return "\n\n".join(table(title, list(of_table)) for title, of_table in groupby(rows, lambda row: row["table"]))


def table(title: str, rows: list[dict[str, Any]]) -> str:
    peers = list(dict.fromkeys(side for row in rows for side in row["milliseconds"] if side != "cvops"))
    lines = [f"| {title} | cvops, ms | {' | '.join(peers)} |", "|---|" + "---:|" * (1 + len(peers))]
    for row in rows:
        ratios = [f"{three_digits(row['ratios'][peer])} x" if peer in row["ratios"] else "-" for peer in peers]
        lines.append(f"| {row['name']} | {three_digits(row['milliseconds']['cvops'])} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(tables(json.loads(Path(file).read_text())) for file in sys.argv[1:]))
