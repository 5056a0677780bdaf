"""The command python -m lbdt_jax.export: see lbdt_jax/export/__init__.py."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from input_pipeline.errors import exit_on_error
from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.cli import path_flag
from lbdt_jax.cpu import onednn
from lbdt_jax.export import FORMATS, write
from lbdt_jax.hub import locate_checkpoint


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.export", description="Exports programs that run without lbdt_jax.", allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=path_flag,
        help="a checkpoint's folder, WORKDIR for its newest one, WORKDIR/best for its best one, or OWNER/NAME on "
        "the Hugging Face Hub",
    )
    parser.add_argument("--output", required=True, type=path_flag, help="a new folder")
    parser.add_argument("--format", choices=FORMATS, default="stablehlo", help="of the programs; default: stablehlo")
    args = parser.parse_args()
    os.environ.pop(onednn.ENVIRONMENT_VARIABLE, None)  # the programs have to run on other machines, too
    with exit_on_error("\nStopped; nothing was exported.", lambda error: f"{args.output} can't be written: {error}"):
        checkpoint = load_checkpoint(locate_checkpoint(args.checkpoint))
        write(checkpoint, args.output, args.format, source=without_home(args.checkpoint))
        size = sum(path.stat().st_size for path in args.output.iterdir())
        print(f"{size / 1e6:.1f} MB: {args.output}")


def without_home(path: Path) -> Path:
    """The path, with ~ for the home folder, since exports are shared and its name is private."""
    home = Path(os.path.expanduser("~"))
    return Path("~", path.relative_to(home)) if path.is_relative_to(home) else path


if __name__ == "__main__":
    main()
