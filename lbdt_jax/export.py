r"""Exports the network as programs that run without this package, with jax and numpy alone.

    python -m lbdt_jax.export --checkpoint=DIR --output=DIR

`jax.export` lowers the model's methods `encode` and `segment` to StableHLO, for CPU, CUDA and TPU, and for any number
of frame pairs and sentences. --output then holds

    encode.jax              the program `encode`, serialized: (weights, frames) -> features
    answer.jax              the program `segment`, serialized: (weights, features, sentences) -> logits
    weights.npz             the weights, the first argument of both: float32 arrays by name
    vocabulary.npz          "words" (V,) and their "vectors" (V, D); for a transformer, tokenizer.json instead
    model.json              names, shapes and dtypes of all inputs and outputs; sizes; how to tokenize a sentence

The weights are not part of the programs, so that both share one copy and compile fast. To run them:

    import json, pathlib, re
    import jax, jax.export, numpy as np

    folder = pathlib.Path("exported")
    model = json.loads((folder / "model.json").read_text())
    weights = jax.device_put(dict(np.load(folder / "weights.npz")))
    encode = jax.jit(jax.export.deserialize((folder / "encode.jax").read_bytes()).call)
    segment = jax.jit(jax.export.deserialize((folder / "answer.jax").read_bytes()).call)
    vocabulary = np.load(folder / "vocabulary.npz")
    word_vectors = dict(zip(vocabulary["words"].tolist(), vocabulary["vectors"]))

    def encode_sentence(sentence):
        tokens = [token.lower() for token in re.split(r"(\W+)", sentence.strip()) if token not in ("", " ")]
        tokens = (tokens[:-1] if tokens[-1:] == ["."] else tokens)[: model["max_words"]] or [""]
        words = np.zeros((model["max_words"], model["word_vector_size"]), np.float32)
        for index, token in enumerate(tokens):
            words[index] = word_vectors.get(token, 0)
        return words, np.arange(len(words)) < len(tokens)

    # frames and earlier_frames: B frame pairs, (B, H, W, 3) uint8 RGB, model["seconds_between"] apart
    features = encode(weights, {"frame": frames, "earlier_frame": earlier_frames})

    # S sentences, each with the index of the frame pair in which it is segmented
    sentences = ["the red circle moving left", "the blue square"]
    frame_of_sentence = [0, 0]
    words, word_mask = zip(*map(encode_sentence, sentences))
    inputs = {
        "words": np.stack(words),
        "word_mask": np.stack(word_mask),
        "frame_of_sentence": np.array(frame_of_sentence, np.int32),
    }
    logits = np.asarray(segment(weights, features, inputs))  # (S, H, W) float32
    masks = logits > 0

A program is compiled when it is first called, and again for any other number of frame pairs or sentences. jax reads
programs from versions up to half a year older than itself: https://docs.jax.dev/en/latest/export/export.html
Where this package is installed, `load_program(folder / "encode.jax")` reads one with a message if it is too old or
damaged; "sha256" in model.json has the checksums of the files.

For a transformer there is no vocabulary, and `words` are token ids:

    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode_sentence(sentence):
        encoding = tokenizer.encode(sentence)
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from input_pipeline.errors import UserError, exit_on_error
from input_pipeline.files import read_limited
from input_pipeline.text.encoders import TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint
from lbdt_jax.cli import atomic_write, path_flag, write_json
from lbdt_jax.config import encoder_name
from lbdt_jax.cpu import onednn
from lbdt_jax.hub import locate_checkpoint
from lbdt_jax.inference.segmenter import check_fits
from lbdt_jax.models.types import Array, FramePairFeatures
from lbdt_jax.step import make_model

PLATFORMS = ("cpu", "cuda", "tpu")

#: Of a program, without weights a few MB, and of model.json, a few kB.
MAX_PROGRAM_BYTES, MAX_JSON_BYTES = 256 * 2**20, 2**20

#: Program -> its file. The names are older than the method `segment`, and stay for scripts that read them.
FILES = {"encode": "encode.jax", "segment": "answer.jax"}

WORD_INSTRUCTIONS = (
    r"Strip the sentence, split it at every run of non-word characters (\W+) and keep those runs, except single spaces;"
    " convert all to lower case; drop a last token '.'; keep the first max_words. A token's vector is its row in "
    "vocabulary.npz, or zeros; after the last token come zeros. word_mask is true for tokens. The empty sentence is "
    "one unknown token."
)
TOKENIZER_INSTRUCTIONS = (
    "Encode the sentence with tokenizer.json, in the format of the library tokenizers, which truncates and pads it to "
    "max_words tokens. words are the ids, word_mask is the attention mask."
)


def export_programs(checkpoint: Checkpoint) -> dict[str, export.Exported]:
    """Exports `encode` and `segment` for any number of frame pairs B and sentences S.

    Returns:
      "encode": (weights, {"frame", "earlier_frame"}: (B, H, W, 3) uint8) -> features, by the names of
        `FramePairFeatures`, each (B, ...).
      "segment": (weights, features, {"words": (S, N, D) float32 or (S, N) int32, "word_mask": (S, N) bool,
        "frame_of_sentence": (S,) int32 in [0, B)}) -> logits (S, H, W) float32, positive in the object.
      The weights of both are all variables, {name: array}, as from `flat_weights`.
    """
    model = make_model(checkpoint.config)

    def encode(weights: dict[str, Array], frames: dict[str, Array]) -> dict[str, Array]:
        variables = unflatten_dict(weights, "/")
        features: Any = model.apply(variables, frames["frame"], frames["earlier_frame"], method="encode")
        named = {field.name: getattr(features, field.name) for field in dataclasses.fields(features)}
        return {name: value for name, value in named.items() if value is not None}

    def segment(weights: dict[str, Array], features: dict[str, Array], sentences: dict[str, Array]) -> Array:
        variables = unflatten_dict(weights, "/")
        all_features: dict[str, Any] = {field.name: None for field in dataclasses.fields(FramePairFeatures)} | features
        repeated = FramePairFeatures(**all_features).for_sentences(sentences["frame_of_sentence"])
        words, word_mask = sentences["words"], sentences["word_mask"]
        logits: Any = model.apply(variables, repeated, words, word_mask, method="segment")
        return logits

    frame_pair_count, sentence_count = export.symbolic_shape("B, S")
    frame = jax.ShapeDtypeStruct((frame_pair_count, *checkpoint.config.image_size, 3), np.uint8)
    frames = {"frame": frame, "earlier_frame": frame}
    shape, size = (sentence_count, checkpoint.config.max_words), checkpoint.sentence_encoder.size
    sentences = {
        "words": jax.ShapeDtypeStruct(shape, np.int32)
        if model.transformer
        else jax.ShapeDtypeStruct((*shape, size), np.float32),
        "word_mask": jax.ShapeDtypeStruct(shape, bool),
        "frame_of_sentence": jax.ShapeDtypeStruct((sentence_count,), np.int32),
    }
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in flat_weights(checkpoint).items()}
    features = jax.eval_shape(encode, weights, frames)
    return {
        "encode": export.export(jax.jit(encode), platforms=PLATFORMS)(weights, frames),
        "segment": export.export(jax.jit(segment), platforms=PLATFORMS)(weights, features, sentences),
    }


def flat_weights(checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's variables by name, "params/head/project/bias"."""
    return flatten_dict(checkpoint.variables, sep="/")


def write(checkpoint: Checkpoint, output: Path) -> None:
    """Writes all the files that the module docstring lists to a new folder, completely or not at all.

    Raises:
      CheckpointError: the checkpoint does not fit its own configuration.
      UserError: the output exists.
      OSError: the folder can't be written.
    """
    check_fits(checkpoint)
    if output.exists():
        raise UserError(f"--output: {output} exists already. Nothing is overwritten; choose another name.")
    with atomic_write(output) as folder:
        folder.mkdir()
        programs = export_programs(checkpoint)
        for name, program in programs.items():
            (folder / FILES[name]).write_bytes(program.serialize())
        np.savez(folder / "weights.npz", **jax.device_get(flat_weights(checkpoint)))
        tokenization = write_vocabulary(checkpoint, folder)
        checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        write_json(describe_export(checkpoint, programs, tokenization) | {"sha256": checksums}, folder / "model.json")


def write_vocabulary(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Writes vocabulary.npz or tokenizer.json, and returns what model.json says about it."""
    encoder = checkpoint.sentence_encoder
    if isinstance(encoder, TransformerTokenizer):
        (folder / "tokenizer.json").write_text(encoder.text_for(checkpoint.config.max_words), "utf-8")
        return {"tokenizer": checkpoint.config.text_encoder, "sentence": TOKENIZER_INSTRUCTIONS}
    assert isinstance(encoder, WordVectors)  # the only other kind that a checkpoint holds
    np.savez(folder / "vocabulary.npz", words=np.array(encoder.words, str), vectors=encoder.vectors)
    return {"word_vector_size": encoder.size, "sentence": WORD_INSTRUCTIONS}


def describe_export(
    checkpoint: Checkpoint, programs: Mapping[str, export.Exported], tokenization: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of model.json."""
    config = checkpoint.config
    described = {name: describe(program) for name, program in programs.items()}
    return {
        "model": f"LBDT-{config.model.transfer_layers}, {encoder_name(config.model)}",
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "image_size": [*config.image_size],
        "max_words": config.max_words,
        "seconds_between": config.frame_interval / config.frame_rate,
        **tokenization,
        "B": "frame pairs",
        "S": "sentences, each about the frame pair that frame_of_sentence names, counted from 0",
        "programs": {name: {"file": FILES[name], **program} for name, program in described.items()},
        # The same under its former name, for scripts that are older than "programs".
        "doors": {Path(FILES[name]).stem: program for name, program in described.items()},
    }


def load_program(path: str | Path) -> export.Exported:
    """Reads one of the exported programs; `load_program(path).call` is the function.

    Raises:
      UserError: the file was changed since it was exported, or this version of jax or this device can't run it.
      OSError: there is no such file.
    """
    path = Path(path)
    content = read_limited(path, MAX_PROGRAM_BYTES)
    again = "Export again: python -m lbdt_jax.export --checkpoint=DIR --output=DIR"
    version, checksum = None, None
    if path.with_name("model.json").exists():
        try:
            described = json.loads(read_limited(path.with_name("model.json"), MAX_JSON_BYTES))
            version, checksum = described["jax"], described.get("sha256", {}).get(path.name)  # new in version 0.2
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path.with_name('model.json')} is broken: {error!r:.200}. {again}") from error
    if checksum and hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(f"{path} was changed since it was exported: it is damaged. {again}")
    try:
        program = export.deserialize(bytearray(content))
        program.mlir_module()  # what is too old is noticed only here
    except Exception as error:  # flatbuffers and MLIR raise anything
        exported_by = f" It was exported by jax {version}." if version else ""
        raise UserError(
            f"{path} can't be read by jax {jax.__version__}.{exported_by} A version of jax reads the programs of those "
            f"that are up to half a year older, and of none that is newer; or the file is damaged. {again}\n"
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]:.300}"
        ) from error
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in program.platforms:
        raise UserError(f"{path} runs on {', '.join(program.platforms)}, not on {platform}.")
    return program


def describe(program: export.Exported) -> dict[str, Any]:
    """The inputs and outputs of a program, dtype and shape by name; only the weights are not listed."""

    def describe_arrays(tree: Any) -> Any:
        if isinstance(tree, Mapping):
            return {name: describe_arrays(value) for name, value in tree.items()}
        return f"{tree.dtype}[{', '.join(map(str, tree.shape))}]"

    (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return {
        "inputs": ["weights", *map(describe_arrays, inputs)],
        "output": describe_arrays(jax.tree.unflatten(program.out_tree, program.out_avals)),
    }


def main() -> None:
    """Parses the command line and exports."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.export", description="Exports programs that run without lbdt_jax.", allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=path_flag,
        help="a checkpoint's folder, WORKDIR for its newest one or WORKDIR/best for its best one",
    )
    parser.add_argument("--output", required=True, type=path_flag, help="a new folder")
    args = parser.parse_args()
    os.environ.pop(onednn.ENVIRONMENT_VARIABLE, None)  # the programs have to run on other machines, too
    with exit_on_error("\nStopped; nothing was exported.", lambda error: f"{args.output} can't be written: {error}"):
        write(load_checkpoint(locate_checkpoint(args.checkpoint)), args.output)
        size = sum(path.stat().st_size for path in args.output.iterdir())
        print(f"{size / 1e6:.1f} MB: {args.output}")


if __name__ == "__main__":
    main()
