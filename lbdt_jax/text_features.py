"""The text encoder of a run: how its sentences are encoded, and the precomputed features of a frozen transformer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.datasets import all_datasets, dataset_config
from input_pipeline.errors import UserError
from input_pipeline.report import records_dir
from input_pipeline.text.encoders import PrecomputedFeatures, SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax.cli import atomic_write
from lbdt_jax.models.transformer import Transformer, TransformerConfig

#: Sentences per batch when features are computed.
BATCH_SIZE = 64


def open_text_encoder(
    config: ConfigDict, vocabulary: list[str]
) -> tuple[ConfigDict, SentenceEncoder, dict[str, Any] | None]:
    """Loads the text encoder that a configuration names.

    Args:
      config: uses the fields text_encoder, word_vectors and max_words.
      vocabulary: the words of the dataset.

    Returns:
      config: with model.transformer and tokenizer (a hash that identifies it) filled in for a transformer.
      sentence_encoder: word vectors, or the tokenizer of a transformer.
      params: parameters of the pretrained transformer, float32; None for the published encoder, "glove_lstm".

    Raises:
      UserError: the text encoder or the word vectors are missing or don't fit the configuration.
    """
    if config.text_encoder == "glove_lstm":
        return config, load_word_vectors(config.word_vectors, vocabulary), None
    from lbdt_jax.convert.transformer import load_pretrained  # imports transformers, which is slow

    pretrained = load_pretrained(config.text_encoder)
    tokenizer = pretrained.tokenizer
    min_words, max_words = tokenizer.special_tokens + 1, pretrained.config.max_length
    if not min_words <= config.max_words <= max_words:
        raise UserError(
            f"config.max_words is {config.max_words}; {config.text_encoder} reads {min_words} to {max_words} tokens."
        )
    config = config.copy_and_resolve_references()
    config.model.transformer = ConfigDict(dataclasses.asdict(pretrained.config))
    config.tokenizer = hashlib.sha256(tokenizer.text.encode()).hexdigest()
    return config, tokenizer, pretrained.params


def with_transformer(variables: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables of a model with the parameters of its transformer replaced by pretrained ones."""
    text_encoder = {**variables["params"]["text_encoder"], "transformer": params}
    return {**variables, "params": {**variables["params"], "text_encoder": text_encoder}}


def precomputed_features(
    config: ConfigDict, variables: dict[str, Any], tokenizer: TransformerTokenizer
) -> PrecomputedFeatures:
    """Returns the features of a frozen transformer for all sentences of a dataset, or of several.

    They are computed once and stored next to the records of each, in a folder whose name is a hash of everything they
    depend on.

    Args:
      config: uses the fields data_dir, dataset, max_words, augment_flip and model, and those that
        `datasets.all_datasets` uses.
      variables: of the model, on this process's first device or on the host.
      tokenizer: of the transformer.

    Raises:
      UserError: there are no records, a file of records or features is broken, the features are not finite, or they
        can't be written.
    """
    params = jax.device_get(variables["params"]["text_encoder"]["transformer"])
    name = _features_name(config, params, tokenizer)
    features: PrecomputedFeatures | None = None
    for dataset in reversed(all_datasets(config)):
        folder = records_dir(config.data_dir, dataset) / "text_features" / name
        if not folder.is_dir():
            try:
                with atomic_write(folder) as unfinished:
                    _write_features(dataset_config(config, dataset), params, tokenizer, unfinished)
            except OSError as error:
                raise UserError(
                    f"The features of {config.text_encoder} can't be written to {folder}: {error.strerror}. Free some "
                    "space, or choose another config.data_dir."
                ) from error
        features = PrecomputedFeatures(folder, tokenizer, features)
    assert features is not None  # there is at least config.dataset
    return features


def _features_name(config: ConfigDict, params: dict[str, Any], tokenizer: TransformerTokenizer) -> str:
    """Returns a hash of the transformer, its tokenizer and the settings that the features depend on."""
    digest = hashlib.sha256()
    settings = (config.model.transformer.to_json(), config.model.dtype, config.max_words, tokenizer.text)
    digest.update(repr(settings).encode())
    if config.augment_flip:  # with the features of mirrored sentences
        digest.update(b"mirrored")
    for path, array in sorted(flatten_dict(params).items()):
        digest.update(repr((path, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _write_features(config: ConfigDict, params: dict[str, Any], tokenizer: TransformerTokenizer, folder: Path) -> None:
    """Computes features and writes the files that `PrecomputedFeatures` reads."""
    from input_pipeline.pipeline import distinct_sentences  # imports TensorFlow

    sentences = distinct_sentences(config)
    encoded = [tokenizer.encode(sentence, config.max_words) for sentence in sentences]
    ids, masks = np.stack([ids for ids, _ in encoded]), np.stack([mask for _, mask in encoded])
    lengths = masks.sum(axis=1)
    folder.mkdir()
    (folder / "sentences.json").write_text(json.dumps({"sentences": sentences, "lengths": lengths.tolist()}), "utf-8")
    shape = (int(lengths.sum()), config.model.transformer.width)
    with (
        # Not a memory map: on a full disk, that is a bus error.
        (folder / "features.npy").open("wb") as file,
        tqdm(total=len(sentences), desc=f"features by {config.text_encoder}", unit="sentence") as progress,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for features in _batch_features(config, params, ids, masks):
            if not np.isfinite(features).all():
                raise UserError(f"The features of {config.text_encoder} are NaN or infinite: its weights are broken.")
            file.write(np.ascontiguousarray(features, "<f4").data)
            progress.update(min(BATCH_SIZE, len(sentences) - progress.n))


def _batch_features(
    config: ConfigDict, params: dict[str, Any], ids: np.ndarray, masks: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the features (number of tokens, D) float32 of the tokens of `BATCH_SIZE` sentences at a time.

    Args:
      config: uses its field model.
      params: of the transformer.
      ids: (S, N) int32.
      masks: (S, N) bool.
    """
    transformer = Transformer(TransformerConfig(**config.model.transformer), dtype=config.model.dtype)
    params = jax.device_put(params, jax.local_devices()[0])

    @jax.jit
    def forward(params: dict[str, Any], ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jnp.asarray(transformer.apply({"params": params}, ids, mask), jnp.float32)

    for start in range(0, len(ids), BATCH_SIZE):
        batch_ids, batch_masks = ids[start : start + BATCH_SIZE], masks[start : start + BATCH_SIZE]
        padding = ((0, BATCH_SIZE - len(batch_ids)), (0, 0))  # one batch size, hence one compilation
        features = forward(params, np.pad(batch_ids, padding, "edge"), np.pad(batch_masks, padding, "edge"))
        yield np.asarray(features)[: len(batch_ids)][batch_masks]
