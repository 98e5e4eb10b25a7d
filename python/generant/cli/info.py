"""Print version, backend, instruction set, threads and CUDA state."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    from .. import show_config

    print(show_config())
    return 0
