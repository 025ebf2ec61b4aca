"""`python -m cvops info` and `python -m cvops warmup`."""

from __future__ import annotations

import argparse
import time

from . import __version__, _info, _runtime


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cvops", description="Detection operators for any array library.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="print versions, backends, threads, cache folder, and what is missing")
    warmup = commands.add_parser("warmup", help="compile kernels ahead of their first call and cache them on disk")
    warmup.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    warmup.add_argument("--dtypes", nargs="+", default=["float32"], help="float64 float32 float16 (default: float32)")
    warmup.add_argument("--operators", nargs="+", metavar="NAME", help="operators such as nms (default: all)")
    options = parser.parse_args(arguments)
    if options.command == "info":
        _info.print_report()
        return
    start = time.perf_counter()
    try:
        _runtime.warmup(options.device, options.dtypes, options.operators)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    print(f"ready after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
