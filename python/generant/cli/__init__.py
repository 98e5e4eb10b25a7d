"""The command `generant`. Each subcommand is a module with add_arguments(parser) and run(arguments)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import demo, evaluate, fit, info, interpolate, lab, sample, score

__all__ = ["main"]

COMMANDS = {
    "fit": fit, "sample": sample, "interpolate": interpolate, "score": score, "evaluate": evaluate, "demo": demo,
    "info": info, "lab": lab,
}  # fmt: skip
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failure, 2 for bad usage, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="generant", description="Generative models on compiled kernels.")
    parser.add_argument("--version", action="version", version=f"generant {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").strip()
        command = subparsers.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawTextHelpFormatter
        )
        module.add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        print("\ngenerant: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"generant {arguments.command}: error: {error}", file=sys.stderr)
        return 2
