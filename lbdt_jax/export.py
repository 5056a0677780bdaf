r"""Writes the network as programs that run without this code: with jax and numpy alone.

    python -m lbdt_jax.export --checkpoint=DIR --output=DIR

The two doors are lowered to StableHLO by `jax.export`, for CPU, CUDA and TPU, any number of frame pairs and of
sentences at once. In --output then are

    encode.jax, answer.jax  the programs, serialised: (weights, a dictionary of inputs) -> outputs
    weights.npz             what both take first: float32 arrays by name
    vocabulary.npz          "words" (V,) and their "vectors" (V, D); of a transformer tokenizer.json instead
    model.json              names, shapes and dtypes of all inputs and outputs; sizes; how a sentence becomes words

The weights lie beside the programs: both doors then share one copy, nothing of it is parsed or folded as the programs
are compiled, and numpy reads them as fast as the disk. To run them:

    import json, pathlib, re
    import jax, jax.export, numpy as np

    folder = pathlib.Path("exported")
    model = json.loads((folder / "model.json").read_text())
    weights = jax.device_put(dict(np.load(folder / "weights.npz")))
    vocabulary = np.load(folder / "vocabulary.npz")
    vector_of = dict(zip(vocabulary["words"].tolist(), vocabulary["vectors"]))
    encode, answer = (
        jax.jit(jax.export.deserialize((folder / f"{door}.jax").read_bytes()).call) for door in ("encode", "answer")
    )

    def read(sentence):
        tokens = [token.lower() for token in re.split(r"(\W+)", sentence.strip()) if token not in ("", " ")]
        tokens = (tokens[:-1] if tokens[-1:] == ["."] else tokens)[: model["max_words"]] or [""]
        words = np.zeros((model["max_words"], model["word_vector_size"]), np.float32)
        for place, token in enumerate(tokens):
            words[place] = vector_of.get(token, 0)
        return words, np.arange(len(words)) < len(tokens)

    # B frame pairs, (B, H, W, 3) uint8 RGB each, the earlier one model["seconds_between"] before; S questions
    questions = [(0, "the red circle moving left"), (0, "the blue square")]  # each about which frame pair
    features = encode(weights, {"frame": frames, "earlier_frame": earlier_frames})
    words, word_mask = zip(*(read(sentence) for _, sentence in questions))
    asked = {"words": np.stack(words), "word_mask": np.stack(word_mask)}
    asked["frame_of_sentence"] = np.array([pair for pair, _ in questions], np.int32)
    logits = np.asarray(answer(weights, features, asked))  # (S, H, W) float32
    masks = logits > 0

A program is compiled at its first call, and once more for every other number of frame pairs and sentences. jax reads
programs of versions up to half a year older than itself: https://docs.jax.dev/en/latest/export/export.html

Where a transformer reads the sentences, there is no vocabulary, and `words` are ids of tokens:

    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def read(sentence):
        encoding = tokenizer.encode(sentence)
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from input_pipeline.errors import UserError, exit_on_error
from input_pipeline.text.encoders import TransformerTokenizer
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint
from lbdt_jax.cli import atomic_write, write_json
from lbdt_jax.cpu import onednn
from lbdt_jax.inference.segmenter import check_fits
from lbdt_jax.models.types import Array, FramePairFeatures
from lbdt_jax.step import make_model

PLATFORMS = ("cpu", "cuda", "tpu")

HOW_TO_READ = (
    r"Strip the sentence, split it at every run of non-word characters (\W+) and keep those runs, except single blanks;"
    " lower-case all; drop a last token '.'; keep the first max_words. A token's vector is its row in vocabulary.npz, "
    "or zeros; behind the last token come zeros. word_mask is true for tokens. The empty sentence is one unknown token."
)
HOW_TO_READ_TOKENS = (
    "Encode it with tokenizer.json, the format of the library tokenizers, which cuts and pads it to max_words tokens. "
    "words are the ids, word_mask is the attention mask."
)


def export_doors(checkpoint: Checkpoint) -> dict[str, export.Exported]:
    """The two doors as programs of no particular batch size.

    Returns:
      "encode": (weights, {"frame", "earlier_frame"}: (B, H, W, 3) uint8) -> features, by the names of
        `FramePairFeatures`, each (B, ...).
      "answer": (weights, features, {"words": (S, N, D) float32 or (S, N) int32, "word_mask": (S, N) bool,
        "frame_of_sentence": (S,) int32 in [0, B)}) -> logits (S, H, W) float32, positive where the object is.
      Both take all weights as {name: array}, as `flat_weights` makes them.
    """
    model = make_model(checkpoint.config)

    def encode(weights: dict[str, Array], frames: dict[str, Array]) -> dict[str, Array]:
        features = model.apply(unflatten_dict(weights, "/"), frames["frame"], frames["earlier_frame"], method="encode")
        named = {field.name: getattr(features, field.name) for field in dataclasses.fields(features)}
        return {name: value for name, value in named.items() if value is not None}

    def answer(weights: dict[str, Array], features: dict[str, Array], asked: dict[str, Array]) -> Array:
        absent = dict.fromkeys(field.name for field in dataclasses.fields(FramePairFeatures))
        each = FramePairFeatures(**(absent | features)).for_sentences(asked["frame_of_sentence"])
        return model.apply(unflatten_dict(weights, "/"), each, asked["words"], asked["word_mask"], method="segment")

    pairs, sentences = export.symbolic_shape("B, S")
    frame = jax.ShapeDtypeStruct((pairs, *checkpoint.config.image_size, 3), np.uint8)
    length, size = checkpoint.config.max_words, checkpoint.sentence_encoder.size
    words = ((sentences, length), np.int32) if model.transformer else ((sentences, length, size), np.float32)
    asked = {
        "words": jax.ShapeDtypeStruct(*words),
        "word_mask": jax.ShapeDtypeStruct((sentences, length), bool),
        "frame_of_sentence": jax.ShapeDtypeStruct((sentences,), np.int32),
    }
    frames = {"frame": frame, "earlier_frame": frame}
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in flat_weights(checkpoint).items()}
    features = jax.eval_shape(encode, weights, frames)
    return {
        "encode": export.export(jax.jit(encode), platforms=PLATFORMS)(weights, frames),
        "answer": export.export(jax.jit(answer), platforms=PLATFORMS)(weights, features, asked),
    }


def flat_weights(checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's variables by name, "params/head/project/bias"."""
    return flatten_dict(checkpoint.variables, sep="/")


def write(checkpoint: Checkpoint, output: Path) -> None:
    """Writes everything that the head of this file lists into a new folder, whole or not at all.

    Raises:
      CheckpointError: the checkpoint does not fit its own configuration.
      UserError: there is something of that name.
      OSError: the folder can't be written.
    """
    check_fits(checkpoint)
    if output.exists():
        raise UserError(f"--output: {output} exists already. Nothing is overwritten; choose another name.")
    config = checkpoint.config
    with atomic_write(output) as folder:
        folder.mkdir()
        doors = export_doors(checkpoint)
        for name, door in doors.items():
            (folder / f"{name}.jax").write_bytes(door.serialize())
        np.savez(folder / "weights.npz", **jax.device_get(flat_weights(checkpoint)))
        reader = checkpoint.sentence_encoder
        if isinstance(reader, TransformerTokenizer):
            (folder / "tokenizer.json").write_text(reader.text_for(config.max_words), "utf-8")
            how = {"tokenizer": config.text_encoder, "sentence": HOW_TO_READ_TOKENS}
        else:
            np.savez(folder / "vocabulary.npz", words=np.array(reader.words, str), vectors=reader.vectors)
            how = {"word_vector_size": reader.size, "sentence": HOW_TO_READ}
        write_json(
            {
                "model": f"LBDT-{config.model.transfer_layers}, ResNet-{config.model.resnet_depth}",
                "jax": jax.__version__,
                "platforms": PLATFORMS,
                "image_size": [*config.image_size],
                "max_words": config.max_words,
                "seconds_between": config.frame_interval / config.frame_rate,
                **how,
                "B": "frame pairs",
                "S": "sentences, each about the frame pair that frame_of_sentence names, counted from 0",
                "doors": {name: describe(door) for name, door in doors.items()},
            },
            folder / "model.json",
        )


def describe(door: export.Exported) -> dict[str, Any]:
    """Inputs but the weights, and outputs of a program, as json: dtype and shape by name."""

    def named(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {name: named(value) for name, value in tree.items()}
        return f"{tree.dtype}[{', '.join(map(str, tree.shape))}]"

    (_, *inputs), _ = jax.tree.unflatten(door.in_tree, door.in_avals)
    return {
        "inputs": ["weights", *map(named, inputs)],
        "output": named(jax.tree.unflatten(door.out_tree, door.out_avals)),
    }


def main() -> None:
    """Parses the command line and exports; exits with status 2 and one message for what the user must mend."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.export", description="Writes programs that need no lbdt_jax.", allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="a checkpoint's folder, or WORKDIR for its newest one")
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    asked = parser.parse_args()
    os.environ.pop(onednn.ASKED, None)  # the programs are to run elsewhere, too
    with exit_on_error("\nStopped; nothing was exported.", lambda error: f"{asked.output} can't be written: {error}"):
        write(load_checkpoint(asked.checkpoint), asked.output)
    size = sum(path.stat().st_size for path in asked.output.iterdir())
    print(f"{size / 1e6:.1f} MB: {asked.output}")


if __name__ == "__main__":
    main()
