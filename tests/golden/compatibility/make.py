"""Made the files in this folder, once, with the code of revision 09ece2e; the current code must read them.

In an empty folder, where OLD is a checkout of that revision:

    JAX_HLO_SOURCE_FILE_CANONICALIZATION_REGEX='.*/' PYTHONPATH=OLD:OLD/tests python make.py

../README.md says what the files hold.
"""

# ruff: noqa: I001  (some of the imported modules no longer exist)
from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
from fabricate import write_a2d
from ml_collections import ConfigDict
from runs import logged
from tiny import tiny_config
from tiny_transformer import write_bert

from input_pipeline.pipeline import evaluation_examples, training_batches
from input_pipeline.prepare import prepare
from lbdt_jax import export
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint, save_weights
from lbdt_jax.step import initial_variables, make_model
from lbdt_jax.text import open_text_encoder, with_transformer
from lbdt_jax.train import train

DATASET = "a2d_sentences"


def make_config(steps: int, **fields: object) -> ConfigDict:
    config = tiny_config()
    config.update(dataset=DATASET, data_dir="data", batch_size=2, epochs=steps / 3, contact_sheet_samples=1)
    config.model.update(stream_width=1, transfer_width=8, decoder_width=4)  # 12,000 parameters
    config.update(log_every_steps=1, checkpoint_every_steps=2, picture_every_steps=1000, **fields)
    return config


def pack(name: str, folder: Path, *members: str) -> None:
    """Writes NAME.zip with files and folders of `folder`, in a fixed order and without times."""
    files = [file for member in members for file in sorted([folder / member, *(folder / member).rglob("*")])]
    with zipfile.ZipFile(f"{name}.zip", "w") as archive:
        for file in files:
            if file.is_file():
                member = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                archive.writestr(member, file.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)


def logits(checkpoint: Checkpoint) -> np.ndarray:
    """Every fourth logit of every sentence of both splits, (S, 16, 16) float32."""
    apply = jax.jit(make_model(checkpoint.config).apply)
    batches = []
    for split in ("train", "test"):
        for example in evaluation_examples(checkpoint.config, split, checkpoint.sentence_reader):
            frames = (np.stack([frame] * len(example.sentences)) for frame in (example.frame, example.earlier_frame))
            batches.append(apply(checkpoint.variables, *frames, example.words, example.word_mask))
    return np.concatenate(batches)[:, ::4, ::4]


def describe_examples(config: ConfigDict, checkpoint: Checkpoint, split: str) -> list[dict[str, object]]:
    """Sizes, sentences and checksums of the examples of a split."""
    return [
        {
            "video": example.video,
            "frame_index": example.frame_index,
            "size": example.original_frame.shape[:2],
            "brightness": [float(example.original_frame.mean()), float(example.original_earlier_frame.mean())],
            "sentences": [[sentence.text, sentence.instance] for sentence in example.sentences],
            "tokens": example.word_mask.sum(axis=1).tolist(),
            "words": example.words.sum(axis=(1, 2)).tolist(),
            "targets": [zlib.crc32(target.tobytes()) for target in example.targets],
            "masks": [zlib.crc32(mask.tobytes()) for mask in example.masks],
        }
        for example in evaluation_examples(config, split, checkpoint.sentence_reader)
    ]


def main() -> None:
    write_a2d(Path("raw"))
    prepare(DATASET, "raw", "data")
    pack("records", Path("data"), DATASET)

    config, workdir = make_config(steps=4), Path("glove")
    train(config, workdir)
    pack("glove", workdir, "config.json", "checkpoints/2")
    shutil.rmtree(workdir / "checkpoints/4")
    glove = load_checkpoint(workdir)
    batches = training_batches(config, glove.sentence_reader, first_step=2)
    expected = {
        "loss": logged(workdir, "loss"),
        "gradient_norm": logged(workdir, "gradient_norm"),
        "names": {step: next(batches)["name"].tolist() for step in (3, 4)},
        "examples": {split: describe_examples(config, glove, split) for split in ("train", "test")},
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    export.write(glove, Path("exported"))
    pack("exported", Path("exported"), ".")

    write_bert(Path("bert"))
    config, tokenizer, params = open_text_encoder(make_config(steps=1, text_encoder="bert", max_words=20), [])
    variables = with_transformer(initial_variables(make_model(config), config, tokenizer.size), params)
    save_weights(Path("transformer"), jax.device_get(variables), config, tokenizer, {"decoder.unused": np.arange(3.0)})
    pack("transformer", Path("transformer"), "checkpoints/0")
    np.savez_compressed("logits.npz", glove=logits(glove), transformer=logits(load_checkpoint("transformer")))


if __name__ == "__main__":
    main()
