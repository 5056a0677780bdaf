"""The text side of a run: what reads its sentences, and the features of a transformer that is not trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.text.encoders import PrecomputedFeatures, SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax.cli import atomic_write
from lbdt_jax.models.transformer import Transformer
from lbdt_jax.step import make_model

#: Sentences that a transformer reads at once.
AT_ONCE = 64


def open_text_encoder(
    config: ConfigDict, vocabulary: list[str]
) -> tuple[ConfigDict, SentenceEncoder, dict[str, Any] | None]:
    """Finds the text encoder that a configuration names.

    Args:
      config: its fields text_encoder, text_encoder_learning_rate, word_vectors and max_words are read.
      vocabulary: the words of the data set.

    Returns:
      The configuration, with the sizes of the transformer and what tells its tokenizer from others filled in; what
      reads sentences; and the parameters of a transformer, float32, or None for the published encoder.

    Raises:
      UserError: the encoder or the word vectors are not there, or can't be used.
    """
    if config.text_encoder_learning_rate < 0:
        raise UserError(f"config.text_encoder_learning_rate is {config.text_encoder_learning_rate}; 0.0 is frozen.")
    if config.text_encoder == "glove_lstm":
        if config.text_encoder_learning_rate:
            raise UserError('config.text_encoder_learning_rate is that of a transformer, and there is "glove_lstm".')
        return config, load_word_vectors(config.word_vectors, vocabulary), None
    from lbdt_jax.convert.transformer import load_pretrained  # only here: the library behind it is slow to load

    pretrained = load_pretrained(config.text_encoder)
    fewest, most = pretrained.tokenizer.special_tokens + 1, pretrained.config.longest
    if not fewest <= config.max_words <= most:
        raise UserError(
            f"config.max_words is {config.max_words}; {config.text_encoder} reads {fewest} to {most} tokens."
        )
    config = config.copy_and_resolve_references()
    config.model.transformer = ConfigDict(dataclasses.asdict(pretrained.config))
    config.tokenizer = hashlib.sha256(pretrained.tokenizer.text.encode()).hexdigest()
    return config, pretrained.tokenizer, pretrained.params


def with_transformer(variables: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """A network's variables with the transformer's parameters in the place of the random ones."""
    text_encoder = {**variables["params"]["text_encoder"], "transformer": params}
    return {**variables, "params": {**variables["params"], "text_encoder": text_encoder}}


def precomputed_features(
    config: ConfigDict, variables: dict[str, Any], reader: TransformerTokenizer
) -> PrecomputedFeatures:
    """What the frozen transformer of a network gives for every sentence of a data set.

    They are computed once and lie beside the records, under a name that depends on all that they depend on.

    Args:
      config: its fields data_dir, dataset, max_words and model are read.
      variables: of the network, on this process's first device or on the host.
      reader: of the transformer's tokens.

    Raises:
      UserError: there are no records, or a file of them or of the features is broken.
      OSError: the features can't be written.
    """
    from input_pipeline.report import records_dir  # only here: predicting needs no readers of data sets

    params = jax.device_get(variables["params"]["text_encoder"]["transformer"])
    name = _digest(config, params, reader)
    folder = records_dir(config.data_dir, config.dataset) / "text_features" / name
    if not folder.is_dir():
        with atomic_write(folder) as unfinished:
            _compute_features(config, params, reader, unfinished)
    return PrecomputedFeatures(folder, reader)


def _compute_features(config: ConfigDict, params: dict[str, Any], reader: TransformerTokenizer, folder: Path) -> None:
    """Writes what `PrecomputedFeatures` reads."""
    from input_pipeline.pipeline import distinct_sentences

    sentences = distinct_sentences(config)
    transformer = Transformer(make_model(config).transformer, dtype=config.model.dtype)
    words, masks = map(np.stack, zip(*(reader.encode(each, config.max_words) for each in sentences), strict=True))
    lengths = masks.sum(axis=1)
    folder.mkdir()
    (folder / "sentences.json").write_text(json.dumps({"sentences": sentences, "lengths": lengths.tolist()}), "utf-8")
    shape = (int(lengths.sum()), transformer.sizes.width)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, shape)
    params = jax.device_put(params, jax.local_devices()[0])
    run = jax.jit(lambda params, ids, mask: transformer.apply({"params": params}, ids, mask).astype(np.float32))
    written = 0
    with tqdm(total=len(sentences), desc=f"features by {config.text_encoder}", unit="sentence") as progress:
        for start in range(0, len(sentences), AT_ONCE):
            ids, mask = words[start : start + AT_ONCE], masks[start : start + AT_ONCE]
            missing = ((0, AT_ONCE - len(ids)), (0, 0))  # every batch is of one size, so that one program does all
            found = np.asarray(run(params, np.pad(ids, missing, "edge"), np.pad(mask, missing, "edge")))
            found = found[: len(ids)][mask]
            features[written : written + len(found)] = found
            written += len(found)
            progress.update(len(ids))
    features.flush()


def _digest(config: ConfigDict, params: dict[str, Any], reader: TransformerTokenizer) -> str:
    """A name for features that differs wherever they may differ."""
    digest = hashlib.sha256()
    settings = (config.model.transformer.to_json(), config.model.dtype, config.max_words, reader.text)
    digest.update(repr(settings).encode())
    for path, array in sorted(flatten_dict(params).items()):
        digest.update(repr((path, array.shape)).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:32]
