r"""Exports the network as programs that run without this package, with jax and numpy alone, or without JAX.

    python -m lbdt_jax.export --checkpoint=DIR --output=DIR [--format=onnx]

By default, `jax.export` lowers the model's methods `encode` and `segment` to StableHLO, for CPU, CUDA and TPU, and for
any number of frame pairs and sentences. --output then holds

    encode.jax              the program `encode`, serialized: (weights, frames) -> features
    answer.jax              the program `segment`, serialized: (weights, features, sentences) -> logits
    weights.npz             the weights, the first argument of both: float32 arrays by name
    vocabulary.npz          "words" (V,) and their "vectors" (V, D); for a transformer, tokenizer.json instead
    model.json              names, shapes and dtypes of all inputs and outputs; sizes; how to tokenize a sentence; when,
                            from which checkpoint and by which version of jax it was exported

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

    # frames and earlier_frames: B frame pairs, (B, H, W, 3) uint8 RGB, model["seconds_between"] apart; H, W are
    # model["image_size"], docs/predict.md says how to resize
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

A program is compiled when it is first called, and again for any other number of frame pairs or sentences. JAX reads
programs of versions up to half a year older, or three weeks newer, than the one that reads; what counts is when the
two were released: https://docs.jax.dev/en/latest/export/export.html
Where this package is installed, `load_program(folder / "encode.jax")` reads one with a message if it is too old or
damaged; "sha256" in model.json has the checksums of the files.

With --format=onnx, --output holds `encode.onnx` and `segment.onnx` with their weights, the vocabulary or tokenizer, and
model.json. docs/predict.md shows how to run them with numpy and onnxruntime alone. They do not expire.

For a transformer there is no vocabulary, and `words` are token ids:

    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode_sentence(sentence):
        encoding = tokenizer.encode(sentence)
        return np.array(encoding.ids, np.int32), np.array(encoding.attention_mask, bool)
"""

from __future__ import annotations

import datetime
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import UserError, say
from input_pipeline.text.encoders import TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.cli import atomic_write, write_json
from lbdt_jax.config import encoder_name
from lbdt_jax.export import onnx_programs, stablehlo
from lbdt_jax.export.stablehlo import describe, export_programs, load_program
from lbdt_jax.inference.segmenter import check_fits

__all__ = ["FORMATS", "describe", "export_programs", "load_program", "write"]

#: Format -> what writes its programs and their weights to a folder.
FORMATS = {"stablehlo": stablehlo.write_programs, "onnx": onnx_programs.write_programs}

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


def write(checkpoint: Checkpoint, output: Path, format: str = "stablehlo", source: str | Path | None = None) -> None:
    """Writes all the files that the module docstring lists to a new folder, completely or not at all.

    Args:
      checkpoint: what to export.
      output: the folder.
      format: a key of FORMATS.
      source: the checkpoint's path as the user gave it, for the command that exports again; None leaves it out.

    Raises:
      CheckpointError: the checkpoint does not fit its own configuration.
      UserError: the output exists, or the model can't be exported in this format.
      OSError: the folder can't be written.
    """
    check_fits(checkpoint)
    if os.path.lexists(output):  # a link that leads nowhere, too
        raise UserError(f"--output: {output} exists already. Nothing is overwritten; choose another name.")
    with atomic_write(output) as folder:
        folder.mkdir()
        programs = FORMATS[format](checkpoint, folder)
        tokenization = write_vocabulary(checkpoint, folder)
        checksums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
        description = describe_export(checkpoint, format, source) | tokenization | programs | {"sha256": checksums}
        write_json(description, folder / "model.json")


def write_vocabulary(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Writes vocabulary.npz or tokenizer.json, and returns what model.json says about it."""
    encoder = checkpoint.sentence_encoder
    if isinstance(encoder, TransformerTokenizer):
        (folder / "tokenizer.json").write_text(encoder.text_for(checkpoint.config.max_words), "utf-8")
        return {"tokenizer": checkpoint.config.text_encoder, "sentence": TOKENIZER_INSTRUCTIONS}
    assert isinstance(encoder, WordVectors)  # the only other kind that a checkpoint holds
    if not encoder.words:
        say(
            f"{checkpoint.path} holds no words, as all that are converted from PyTorch: vocabulary.npz is empty, and "
            "every word would be read as a blank. Look your words up in the word vectors that it was trained with."
        )
    np.savez(folder / "vocabulary.npz", words=np.array(encoder.words, str), vectors=encoder.vectors)
    return {"word_vector_size": encoder.size, "sentence": WORD_INSTRUCTIONS}


def describe_export(checkpoint: Checkpoint, format: str, source: str | Path | None) -> dict[str, Any]:
    """What model.json says about every export, apart from its programs and sentences."""
    config = checkpoint.config
    return {
        "model": f"LBDT-{config.model.transfer_layers}, {encoder_name(config.model)}",
        "format": format,
        "exported": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "jax": jax.__version__,
        **({"checkpoint": str(source)} if source is not None else {}),
        "image_size": [*config.image_size],
        "max_words": config.max_words,
        "seconds_between": config.frame_interval / config.frame_rate,
        "B": "frame pairs",
        "S": "sentences, each about the frame pair that frame_of_sentence names, counted from 0",
    }
