"""A web page to try a model: upload a clip, describe objects, see their masks and download them.

    pip install -r requirements-demo.txt
    python -m lbdt_jax.demo [--checkpoint=DIR] [--port=7860] [--host=0.0.0.0]
                            [--max_seconds=20] [--max_megabytes=50] [--max_minutes=10]

Without --checkpoint it runs the small model in the package, which only knows colored shapes. The page is served to this
machine only, unless --host says otherwise, and loads nothing from the internet but, before it opens, a repository of
the Hugging Face Hub that --checkpoint names. Uploads and results are kept in one temporary folder, each for an hour or
two, and all are deleted when the page is stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
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
from lbdt_jax.cli import in_range
from lbdt_jax.demo.checks import Limits
from lbdt_jax.hub import locate_checkpoint
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import Clip, ClipWriter
from lbdt_jax.predict import describe_model

#: Index of a scene in the test split of Moving Shapes -> some of its sentences, one per line.
EXAMPLES = {
    6: "the only yellow square\nthe rightward moving green shape",
    10: "the red circle\nthe blue triangle moving left",
    3: "the topmost triangle\nthe blue square moving up",
    0: "the leftmost circle\nthe moving red square",
}


def main() -> None:
    """Parses the command line and serves the page until it is stopped."""
    args = arguments().parse_args()
    stop_on_signals()
    with (
        exit_on_error("Stopped.", lambda error: f"Can't serve the page: {error}"),
        tempfile.TemporaryDirectory(prefix="lbdt_demo_", ignore_cleanup_errors=True) as folder,
    ):
        root = Path(folder).resolve()
        checkpoint = locate_checkpoint(args.checkpoint)  # then nothing is fetched any longer
        prepare_environment(root)
        try:
            from lbdt_jax.demo.server import listen, serve
            from lbdt_jax.demo.storage import Storage
        except ModuleNotFoundError as error:
            fail(f"{error}. The page needs `pip install -r requirements-demo.txt`.")
        limits = Limits(args.max_seconds, args.max_megabytes, minutes=args.max_minutes)
        with listen(args.host, args.port) as listener:
            segmenter = lbdt_jax.load(checkpoint, args.word_vectors)
            print(f"{describe_model(segmenter.checkpoint)}\nCompiling it ...", flush=True)
            warm_up(segmenter)
            serve(segmenter, Storage(root, limits), limits, draw_examples(segmenter, root), args.host, listener)


def stop_on_signals() -> None:
    """Makes a hang-up and SIGTERM end the program like Ctrl-C, so that its folder is deleted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        # The server, while it runs, handles SIGTERM in its own way.
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def prepare_environment(root: Path) -> None:
    """Sets what Gradio and others read when they are imported: nothing outside the folder, nothing from elsewhere."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]  # these could share the page or open more of it
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(root / "sent"), HF_HUB_OFFLINE="1")
    if constants := sys.modules.get("huggingface_hub.constants"):  # they read the variable when they are imported
        vars(constants)["HF_HUB_OFFLINE"] = True
    # The page connects to nothing, so a proxy has no part in it; some kinds of proxies would keep it from starting.
    os.environ.update(NO_PROXY="*", no_proxy="*")
    (root / "temporary").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(root / "temporary")


def arguments() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.demo", description="A web page to try a model.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        default=lbdt_jax.DEFAULT_CHECKPOINT,
        help="a checkpoint's folder, WORKDIR for its newest one, WORKDIR/best for its best one, or OWNER/NAME on "
        "the Hugging Face Hub (default: a small one that knows colored shapes)",
    )
    add("--word_vectors", default="", help="where to look up words that are not in the checkpoint")
    add(
        "--host",
        type=host_name,
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 admits other machines (default: 127.0.0.1)",
    )
    add("--port", type=port_number, default=7860, help="port to listen on (default: 7860)")
    add("--max_seconds", type=in_range(float, 0.1, 1e5), default=20.0, help="longest clip (default: 20)")
    add("--max_megabytes", type=in_range(float, 0.001, 1e6), default=50.0, help="largest file (default: 50)")
    add(
        "--max_minutes",
        type=in_range(float, 0.01, 1e5),
        default=10.0,
        help="longest time to segment a clip (default: 10)",
    )
    return parser


def host_name(text: str) -> str:
    """The argparse type of an address or a name of this machine."""
    host = text.removeprefix("[").removesuffix("]")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]+(%\w+)?", host):
        raise argparse.ArgumentTypeError(f"{text!r} is no address or name of this machine; 127.0.0.1 is one")
    return host


def port_number(text: str) -> int:
    """The argparse type of a port."""
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 65535")
    return port


def warm_up(segmenter: Segmenter) -> None:
    """Compiles the model, so that the first visitor does not wait for it."""
    frames = [(0.0, np.zeros((64, 64, 3), np.uint8))]
    sentence = (segmenter.trained_words or ("the",))[0]
    for segmentation in segmenter.segment_frame_pairs(segmenter.frame_pairs(frames), [sentence]):
        segmenter.explain(segmentation.frame_pair, sentence)


def draw_examples(segmenter: Segmenter, root: Path) -> list[tuple[Path, str]]:
    """Writes the example clips, each with a thumbnail beside it (.png), for a model of Moving Shapes only.

    Returns:
      (clip, sentences, one per line) of each example; none for other models.
    """
    if segmenter.checkpoint.config.dataset != "moving_shapes":
        return []
    examples = []
    for index, sentences in EXAMPLES.items():
        frames = make_scene(0, "test", index).frames
        path = root / f"shapes {index}.mp4"
        clip = Clip(path, Fraction(FRAME_RATE), Fraction(1, FRAME_RATE), len(frames), None)
        with ClipWriter(path, frames.shape[1:3], clip) as writer:
            for time, frame in enumerate(frames):
                writer.write(time, frame)
        thumbnail = Image.fromarray(frames[len(frames) // 2]).resize((384, 288), Image.Resampling.BICUBIC)
        thumbnail.save(path.with_suffix(".png"))
        examples.append((path, sentences))
    return examples


if __name__ == "__main__":
    main()
