"""`python -m cvops info` and `python -m cvops warmup`."""

from __future__ import annotations

import argparse
import sys
import time

from . import __version__, _info, _runtime


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cvops", description="Detection operators for any array library.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("info", help="print versions, backends, threads, cache folder, and what is missing")
    warmup = commands.add_parser("warmup", help="compile kernels ahead of their first call and cache them on disk")
    warmup.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    warmup.add_argument("--dtypes", nargs="+", default=["float32"], help="float64 float32 float16 (default: float32)")
    warmup.add_argument("--operators", nargs="+", metavar="NAME", help="operators such as nms (default: all)")
    options = parser.parse_args(arguments)
    if options.command == "info":
        _info.print_report()
    elif options.command == "warmup":
        try:
            steps = _runtime.warmup_steps(options.device, options.dtypes, options.operators)
        except (ValueError, ImportError) as error:
            warmup.error(str(error))
        _compile(steps)
    else:
        parser.print_help()


def _compile(steps: list[_runtime.Step]) -> None:
    """Compile, and tell on the standard error stream what is being compiled: a cold cache takes a minute."""
    start = time.perf_counter()
    for number, step in enumerate(steps, start=1):
        print(f"[{number}/{len(steps)}] {step.operator}, {step.dtype}", end="", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        step.compile()
        print(f": {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
    print(f"ready after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
