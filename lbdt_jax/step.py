"""One training step, as pure functions: loss, gradients, update, on every device the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.typing import FrozenVariableDict
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.batch import MODEL_FIELDS, Batch, random_batch
from input_pipeline.errors import UserError
from lbdt_jax import losses
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.resnet import DEPTHS
from lbdt_jax.models.transformer import TransformerConfig
from lbdt_jax.models.types import Array
from lbdt_jax.parallel import DATA_AXIS

Metrics = dict[str, Array]


class NotFinite(UserError):
    """The loss became infinite or not a number. The message names the step and the samples of its batch."""


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: () int32, steps taken.
      params: float32 parameters.
      batch_stats: running mean and variance of every BatchNorm, float32.
      optimizer_state: AdamW's moments, of the parameters that are trained.
    """

    step: Array
    params: FrozenVariableDict
    batch_stats: FrozenVariableDict
    optimizer_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What LBDT.apply takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_model(config: ConfigDict) -> LBDT:
    """The network that a configuration describes. Raises UserError for sizes that no network can have."""
    if len(config.image_size) != 2 or any(side < 32 or side % 32 for side in config.image_size):
        raise UserError(f"config.image_size is {config.image_size}; height and width must be multiples of 32.")
    if config.model.resnet_depth not in DEPTHS:
        raise UserError(f"config.model.resnet_depth is {config.model.resnet_depth}; choose one of {[*DEPTHS]}.")
    if config.model.transfer_width % config.model.attention_heads or config.model.transfer_width % 4:
        raise UserError(
            f"config.model.transfer_width is {config.model.transfer_width}; it must be a multiple of 4 and of "
            f"config.model.attention_heads, {config.model.attention_heads}."
        )
    fields = config.model.to_dict()
    transformer = fields.pop("transformer")
    if not transformer and config.text_encoder != "glove_lstm":
        raise UserError("config.model.transformer is empty; lbdt_jax.text.open_text_encoder fills it in.")
    return LBDT(
        **fields,
        transformer=TransformerConfig(**transformer) if transformer else None,
        norm_axis_name=DATA_AXIS if config.global_batch_norm else None,
    )


def is_frozen(config: ConfigDict) -> bool:
    """Whether the text encoder is a transformer that is not trained. Its features are then computed once."""
    return bool(config.model.transformer) and not config.text_encoder_learning_rate


def initial_variables(model: LBDT, config: ConfigDict, word_vector_size: int) -> dict[str, Any]:
    """Fresh parameters and statistics, drawn from config.seed; with a transformer, word vectors play no part."""
    # The smallest picture will do: no parameter depends on its size.
    vocabulary = model.transformer.vocabulary if model.transformer else 0
    batch = random_batch(1, (32, 32), config.max_words, word_vector_size, vocabulary_size=vocabulary)
    # "rbg" compiles in a fraction of the time that the default generator takes.
    key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), 0)
    # Without the attention that the model also reports, nothing of the forward pass is left to compile.
    init = jax.jit(functools.partial(model.init, mutable=("params", "batch_stats")))
    return dict(init(key, *(batch[name] for name in MODEL_FIELDS)))


def initial_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, frozen: bool = False
) -> TrainState:
    """The state before the first step; `frozen` as for `split_params`."""
    params = variables["params"]
    trained, _ = split_params(params, frozen)
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(trained))


def split_params(params: FrozenVariableDict, frozen: bool) -> tuple[FrozenVariableDict, FrozenVariableDict]:
    """What is trained, and what stays as it is: if `frozen`, the transformer of the text encoder, else nothing."""
    if not frozen:
        return params, {}
    text_encoder = dict(params["text_encoder"])
    kept = text_encoder.pop("transformer")
    return {**params, "text_encoder": text_encoder}, kept


def join_params(trained: FrozenVariableDict, kept: FrozenVariableDict) -> FrozenVariableDict:
    """The inverse of `split_params`."""
    return {**trained, "text_encoder": {**trained["text_encoder"], "transformer": kept}} if kept else trained


def loss_function(
    params: FrozenVariableDict,
    batch_stats: FrozenVariableDict,
    batch: Batch,
    key: Array,
    model: LBDT,
    config: ConfigDict,
    kept: FrozenVariableDict | None = None,
) -> tuple[Array, tuple[FrozenVariableDict, Metrics]]:
    """The loss of a batch (see input_pipeline/batch.py), the new running statistics and what to report.

    `params` and `kept` are the two parts of `split_params`; without `kept`, everything is trained.
    """
    logits, changed = model.apply(
        {"params": join_params(params, kept or {}), "batch_stats": batch_stats},
        *(batch[name] for name in MODEL_FIELDS),
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    metrics = score(logits, batch["target"], config)
    return metrics["loss"], (changed["batch_stats"], metrics)


def score(logits: Array, target: Array, config: ConfigDict) -> Metrics:
    """What to minimise ("loss") and to report of logits (B, H, W) against targets (B, H, W) of 0 and 1."""
    target = target.astype(logits.dtype)
    bce = losses.binary_cross_entropy(logits, target, config.bce_positive_weight)
    dice = losses.dice(logits, target)
    loss = config.bce_weight * bce + config.dice_weight * dice
    prediction = (logits > 0).astype(logits.dtype)
    intersection = jnp.sum(prediction * target, axis=(1, 2))
    union = jnp.sum(jnp.maximum(prediction, target), axis=(1, 2))
    iou = jnp.mean((intersection + 1e-6) / (union + 1e-6))
    return {"loss": loss, "bce": bce, "dice": dice, "iou": iou}


def make_train_step(
    model: LBDT, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled step (state, batch) -> (state, metrics); the old state's memory is reused.

    Every device works on its part of the batch with its own batch statistics (published: per GPU) and its own
    dropout; gradients, running statistics and metrics are averaged over the axis `data`. This is what jax.pmap
    has become: since JAX 0.8 it is a wrapper of the same jit(shard_map).
    """

    def step_on_device(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        # Folded from seed, step and device: resuming needs nothing saved.
        key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), 1)
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(DATA_AXIS))
        gradient = jax.grad(loss_function, has_aux=True)
        params, kept = split_params(state.params, is_frozen(config))
        gradients, (batch_stats, metrics) = gradient(params, state.batch_stats, batch, key, model, config, kept)
        gradients, batch_stats, metrics = jax.lax.pmean((gradients, batch_stats, metrics), DATA_AXIS)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, params)
        params = join_params(optax.apply_updates(params, updates), kept)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return TrainState(state.step + 1, params, batch_stats, optimizer_state), metrics

    replicated, per_device = PartitionSpec(), PartitionSpec(DATA_AXIS)
    # check_vma=True would insert its own sum over devices: the averaged gradients come out N times too large.
    step = jax.shard_map(
        step_on_device,
        mesh=mesh,
        in_specs=(replicated, per_device),
        out_specs=(replicated, replicated),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=0)
