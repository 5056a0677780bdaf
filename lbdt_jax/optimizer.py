"""AdamW with the published schedule (section 4.1 of the paper; details from the released code)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lbdt_jax.models.types import Array


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step, which counts from 0.

    It rises linearly over the first config.warmup_steps, and halves at each of config.learning_rate_drops (epochs).
    """
    steps = (round(epoch * steps_per_epoch) for epoch in config.learning_rate_drops)
    drops = jnp.asarray([min(step, jnp.iinfo(jnp.int32).max) for step in steps], jnp.int32)

    def schedule(step: Array) -> Array:
        rate = config.learning_rate * 0.5 ** jnp.sum(step >= drops)
        return rate * jnp.minimum(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else rate

    return schedule


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with PyTorch's defaults; weight decay applies to all parameters, norms and biases included, as published.

    A fine-tuned transformer follows the same schedule, scaled to the peak config.text_encoder_learning_rate.

    optax adds the weight decay to the update before scaling by the learning rate, PyTorch shrinks the parameter first:
    the result is the same.
    """
    adamw = optax.adamw(
        learning_rate_schedule(config, steps_per_epoch), b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.weight_decay
    )
    if not (config.model.transformer and config.text_encoder_learning_rate):
        return adamw
    # The whole update of AdamW, weight decay included, is proportional to the learning rate.
    ratio = config.text_encoder_learning_rate / config.learning_rate
    return optax.chain(adamw, optax.masked(optax.scale(ratio), _in_transformer))


def _in_transformer(params: Any) -> Any:
    """For every parameter, whether it belongs to the text encoder's transformer."""
    names = ("text_encoder", "transformer")
    return jax.tree_util.tree_map_with_path(lambda path, _: tuple(key.key for key in path[:2]) == names, params)
