"""One training step as pure functions: loss, gradients and update, the same on every device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.batch import MODEL_FIELDS, random_batch
from input_pipeline.errors import UserError
from lbdt_jax import losses
from lbdt_jax.config import check_config
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.transformer import TransformerConfig
from lbdt_jax.models.types import Array
from lbdt_jax.parallel import DATA_AXIS

#: Parameters or statistics, nested by module.
Variables = Mapping[str, Any]
#: A batch (input_pipeline/batch.py) on the devices.
DeviceBatch = Mapping[str, Array]
Metrics = dict[str, Array]


class NotFinite(UserError):
    """The loss or the gradient is infinite or NaN. The message names the step and the samples of its batch."""


@struct.dataclass
class TrainState:
    """Everything that a training step updates.

    Attributes:
      step: () int32, the number of steps taken.
      params: the parameters, float32; float64 with config.model.dtype "float64".
      batch_stats: running mean and variance of every BatchNorm, of the parameters' dtype.
      optimizer_state: the moments of the trainable parameters.
      ema: with config.ema_decay, the moving average of {"params", "batch_stats"}; a frozen transformer, which does not
        change, is not part of it. Else empty.
    """

    step: Array
    params: Variables
    batch_stats: Variables
    optimizer_state: optax.OptState
    ema: Variables = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `LBDT.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def make_model(config: ConfigDict) -> LBDT:
    """Builds the network of a configuration.

    Raises:
      UserError: a field is wrong, or the sizes of the transformer are not known yet.
    """
    check_config(config)
    fields = config.model.to_dict()
    transformer = fields.pop("transformer")
    if not transformer and config.text_encoder != "glove_lstm":
        raise UserError("config.model.transformer is empty; call lbdt_jax.text_features.open_text_encoder first.")
    return LBDT(
        **fields,
        transformer=TransformerConfig(**transformer) if transformer else None,
        norm_axis_name=DATA_AXIS if config.global_batch_norm else None,
    )


def is_frozen(config: ConfigDict) -> bool:
    """Whether the text encoder is a frozen transformer. Its features are then computed only once per sentence."""
    return bool(config.model.transformer) and not config.text_encoder_learning_rate


def initial_variables(model: LBDT, config: ConfigDict, word_vector_size: int) -> dict[str, Any]:
    """Random parameters and fresh statistics, from config.seed. With a transformer, `word_vector_size` is not used."""
    # No parameter depends on the image size, so the smallest one will do.
    vocabulary = model.transformer.vocabulary if model.transformer else 0
    batch = random_batch(1, (32, 32), config.max_words, word_vector_size, vocabulary_size=vocabulary)
    # The "rbg" generator compiles much faster than the default one.
    key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), 0)
    # Only these collections: without the attention weights that the model sows, XLA drops the whole forward pass.
    init = jax.jit(functools.partial(model.init, mutable=("params", "batch_stats")))
    return dict(init(key, *(batch[name] for name in MODEL_FIELDS)))


def initial_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, frozen: bool = False, ema: bool = False
) -> TrainState:
    """The state before the first step; `frozen` as for `split_params`, `ema` for a state with a moving average."""
    params, batch_stats = variables["params"], variables["batch_stats"]
    trained, _ = split_params(params, frozen)
    # A copy, since the training step donates all arrays of a state.
    averaged = jax.tree.map(jnp.array, {"params": trained, "batch_stats": batch_stats}) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(trained), averaged)


def update_ema(ema: Variables, params: Variables, batch_stats: Variables, step: Array, decay: float) -> Variables:
    """Moves `TrainState.ema` towards the trainable parameters and the statistics after a step, which counts from 1.

    Running means and variances of the BatchNorms are averaged like parameters (as in MDETR and timm). The decay is
    min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage: a short training, too, forgets
    its random start.
    """
    decay_now = jnp.minimum(decay, ((1 + step) / (10 + step)).astype(jnp.float32))
    new = {"params": params, "batch_stats": batch_stats}
    averaged: Variables = optax.incremental_update(new, ema, 1 - decay_now)
    return averaged


def evaluated_variables(state: TrainState, config: ConfigDict) -> dict[str, Any]:
    """The variables that are validated and drawn, see config.evaluated_weights."""
    if not state.ema or config.evaluated_weights == "trained":
        return state.variables
    _, frozen = split_params(state.params, is_frozen(config))
    return {**state.ema, "params": merge_params(state.ema["params"], frozen)}


def split_params(params: Variables, frozen: bool) -> tuple[Variables, Variables]:
    """Splits parameters into (trainable, frozen): if `frozen`, the text encoder's transformer is, else nothing."""
    if not frozen:
        return params, {}
    text_encoder = dict(params["text_encoder"])
    transformer = text_encoder.pop("transformer")
    return {**params, "text_encoder": text_encoder}, transformer


def merge_params(trainable: Variables, frozen: Variables) -> Variables:
    """The inverse of `split_params`."""
    if not frozen:
        return trainable
    return {**trainable, "text_encoder": {**trainable["text_encoder"], "transformer": frozen}}


def loss_function(
    params: Variables,
    batch_stats: Variables,
    batch: DeviceBatch,
    key: Array,
    model: LBDT,
    config: ConfigDict,
    frozen_params: Variables | None = None,
) -> tuple[Array, tuple[Variables, Metrics]]:
    """The loss () of a batch, the new running statistics and the metrics () to log.

    Args:
      params: the trainable part of `split_params`.
      batch_stats: the running statistics.
      batch: see `input_pipeline.batch`.
      key: for dropout.
      model: the network.
      config: uses the weights of the losses.
      frozen_params: the other part of `split_params`; None if all parameters are trainable.
    """
    logits, updated = model.apply(
        {"params": merge_params(params, frozen_params or {}), "batch_stats": batch_stats},
        *(batch[name] for name in MODEL_FIELDS),
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    metrics = compute_metrics(logits, batch["target"], config)
    return metrics["loss"], (updated["batch_stats"], metrics)


def compute_metrics(logits: Array, target: Array, config: ConfigDict) -> Metrics:
    """The "loss" to minimize and the metrics to log; logits (B, H, W), target (B, H, W) of 0 and 1."""
    target = target.astype(logits.dtype)
    bce = losses.binary_cross_entropy(logits, target, config.bce_positive_weight)
    dice = losses.dice(logits, target)
    loss = config.bce_weight * bce + config.dice_weight * dice
    optional = {}
    if config.focal_weight:
        optional["focal"] = losses.focal(logits, target, config.focal_alpha, config.focal_gamma)
        loss += config.focal_weight * optional["focal"]
    prediction = (logits > 0).astype(logits.dtype)
    intersection = jnp.sum(prediction * target, axis=(1, 2))
    union = jnp.sum(jnp.maximum(prediction, target), axis=(1, 2))
    iou = jnp.mean((intersection + 1e-6) / (union + 1e-6))
    return {"loss": loss, "bce": bce, "dice": dice, "iou": iou, **optional}


def make_train_step(
    model: LBDT, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]:
    """Returns the jitted training step (state, batch) -> (state, metrics). It donates the old state's memory.

    Every device processes its shard of the batch with its own batch statistics (published: per GPU) and its own
    dropout; gradients, running statistics and metrics are averaged over the axis `data`. Since JAX 0.8, jax.pmap is a
    wrapper of the same jit(shard_map).
    """

    def step_on_device(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        # Folded from seed, step and device, so that no generator state must be saved.
        key = jax.random.fold_in(jax.random.key(config.seed, impl="rbg"), 1)
        key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(DATA_AXIS))
        grad_function = jax.grad(loss_function, has_aux=True)
        params, frozen = split_params(state.params, is_frozen(config))
        grads, (batch_stats, metrics) = grad_function(params, state.batch_stats, batch, key, model, config, frozen)
        grads, batch_stats, metrics = jax.lax.pmean((grads, batch_stats, metrics), DATA_AXIS)
        updates, optimizer_state = optimizer.update(grads, state.optimizer_state, params)
        params, step = optax.apply_updates(params, updates), state.step + 1
        ema = update_ema(state.ema, params, batch_stats, step, config.ema_decay) if state.ema else {}
        metrics["gradient_norm"] = optax.tree.norm(grads)  # before they are clipped
        return TrainState(step, merge_params(params, frozen), batch_stats, optimizer_state, ema), metrics

    replicated, per_device = PartitionSpec(), PartitionSpec(DATA_AXIS)
    # check_vma=True would insert a second sum over devices and make the averaged gradients N times too large.
    step = jax.shard_map(
        step_on_device,
        mesh=mesh,
        in_specs=(replicated, per_device),
        out_specs=(replicated, replicated),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=0)
