"""A page to try a model: drop a clip, say what to look for, see it, and take the masks home.

    pip install -r requirements-demo.txt
    python -m lbdt_jax.demo [--checkpoint=DIR] [--port=7860] [--host=0.0.0.0] [--max_seconds=20] [--max_megabytes=50]

Without --checkpoint, the small model in the package answers, which knows coloured shapes only. The page is for this
machine only unless --host says otherwise, and asks nothing of the internet. What visitors send and get lies in one
temporary folder, for an hour or two, and until the page is stopped at most.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

import lbdt_jax
from input_pipeline.errors import exit_on_error, fail
from input_pipeline.moving_shapes.raw_layout import FRAME_RATE
from input_pipeline.moving_shapes.scenes import make_scene
from lbdt_jax.cli import at_least
from lbdt_jax.demo.checks import Limits
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import Clip, ClipWriter
from lbdt_jax.predict import describe_model

#: Scenes of Moving Shapes' test split, and some of their sentences.
EXAMPLES = {
    6: "the only yellow square\nthe rightward moving green shape",
    10: "the red circle\nthe blue triangle moving left",
    3: "the topmost triangle\nthe blue square moving up",
    0: "the leftmost circle\nthe moving red square",
}


def main() -> None:
    """Parses the command line and serves the page until it is stopped."""
    args = arguments().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the folder is removed
    with tempfile.TemporaryDirectory(prefix="lbdt_demo_", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        # Gradio reads these when it is imported.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(root / "sent"), HF_HUB_OFFLINE="1")
        try:
            from lbdt_jax.demo.page import serve
        except ModuleNotFoundError as error:
            fail(f"{error}. The page needs `pip install -r requirements-demo.txt`.")
        with exit_on_error("Stopped.", lambda error: f"Can't serve the page: {error}"):
            with socket.create_server((args.host, args.port)):
                pass  # reports a port that is taken now, and not after a minute
            segmenter = lbdt_jax.load(args.checkpoint, args.word_vectors)
            print(f"{describe_model(segmenter.checkpoint)}\nCompiling it ...", flush=True)
            warm_up(segmenter)
            limits = Limits(args.max_seconds, args.max_megabytes)
            serve(segmenter, root, limits, draw_examples(segmenter, root), args.host, args.port)


def arguments() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.demo", description="A page to try a model.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        default=lbdt_jax.DEFAULT_CHECKPOINT,
        help="a checkpoint's folder, or WORKDIR for its newest one (default: a small one that knows coloured shapes)",
    )
    add("--word_vectors", default="", help="where to look up words that the checkpoint does not hold")
    add("--host", default="127.0.0.1", help="the address to serve; 0.0.0.0 lets other machines in (default: 127.0.0.1)")
    add("--port", type=at_least(int, 1), default=7860, help="(default: 7860)")
    add("--max_seconds", type=at_least(float, 0.1), default=20.0, help="longest clip (default: 20)")
    add("--max_megabytes", type=at_least(float, 0.001), default=50.0, help="largest file (default: 50)")
    return parser


def warm_up(segmenter: Segmenter) -> None:
    """Compiles everything, so that the first visitor does not wait for it."""
    frames = [(0.0, np.zeros((64, 64, 3), np.uint8))]
    sentence = (segmenter.trained_words or ("the",))[0]
    for answer in segmenter.segment_frame_pairs(segmenter.frame_pairs(frames), [sentence]):
        segmenter.explain(answer.frame_pair, sentence)


def draw_examples(segmenter: Segmenter, root: Path) -> list[tuple[Path, str]]:
    """Clips to begin with and sentences about them: for a model of Moving Shapes, and none for others."""
    if segmenter.checkpoint.config.dataset != "moving_shapes":
        return []
    examples = []
    for number, text in EXAMPLES.items():
        frames = make_scene(0, "test", number).frames
        path = root / f"shapes {number}.mp4"
        clip = Clip(path, Fraction(FRAME_RATE), Fraction(1, FRAME_RATE), len(frames), None)
        with ClipWriter(path, frames.shape[1:3], clip) as writer:
            for time, frame in enumerate(frames):
                writer.write(time, frame)
        Image.fromarray(frames[len(frames) // 2]).resize((384, 288), Image.Resampling.BICUBIC).save(
            path.with_suffix(".png")
        )
        examples.append((path, text))
    return examples


if __name__ == "__main__":
    main()
