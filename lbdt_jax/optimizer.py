"""AdamW with the published schedule (section 4.1 of the paper; details from the released code), and options."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from lbdt_jax.models.types import Array

KeyPath = tuple[jax.tree_util.DictKey, ...]

#: The paths of both image encoders.
STREAMS = (("spatial_stream",), ("temporal_stream",))


def training_steps(config: ConfigDict, steps_per_epoch: int) -> int:
    """The number of steps of the whole training."""
    return round(config.epochs * steps_per_epoch)


def learning_rate_schedule(config: ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step, which counts from 0.

    It rises linearly over the first config.warmup_steps. With config.learning_rate_schedule "drops" it halves at each
    of config.learning_rate_drops (epochs), as published. With "cosine" it falls after the warm-up to 0 at the end of
    the training: learning_rate * (1 + cos(pi t)) / 2, where t goes from 0 to 1 (Loshchilov and Hutter, arXiv
    1608.03983, equation 5 without restarts).
    """
    if config.learning_rate_schedule == "cosine":
        falling_steps = max(1, training_steps(config, steps_per_epoch) - config.warmup_steps)
        cosine = optax.cosine_decay_schedule(config.learning_rate, falling_steps)

        def rate_without_warmup(step: Array) -> Array:
            return jnp.asarray(cosine(jnp.maximum(step - config.warmup_steps, 0)))

    else:
        steps = (round(epoch * steps_per_epoch) for epoch in config.learning_rate_drops)
        drops = jnp.asarray([min(step, jnp.iinfo(jnp.int32).max) for step in steps], jnp.int32)

        def rate_without_warmup(step: Array) -> Array:
            return config.learning_rate * 0.5 ** jnp.sum(step >= drops)

    def schedule(step: Array) -> Array:
        rate = rate_without_warmup(step)
        return rate * jnp.minimum(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else rate

    return schedule


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW with PyTorch's defaults; weight decay applies to all parameters, norms and biases included, as published.

    With config.optimizer "muon", the momentum of matrices and convolution kernels is orthogonalized (Jordan et al.,
    https://kellerjordan.github.io/posts/muon) and scaled to the root mean square 0.2 of AdamW's updates, so that
    AdamW's learning rate and weight decay suit it (Liu et al., arXiv 2502.16982, section 2.2). Biases, norms,
    embeddings and depthwise convolutions are left to AdamW. Both have Nesterov momentum.

    A fine-tuned transformer follows the same schedule, scaled to the peak config.text_encoder_learning_rate, and both
    streams follow it scaled by config.encoder_learning_rate_factor. With config.clip_gradient_norm, gradients of a
    larger norm are first scaled down to it, all by the same factor (Pascanu et al., arXiv 1211.5063).

    optax adds the weight decay to the update before scaling by the learning rate, PyTorch shrinks the parameter first:
    the result is the same.
    """
    schedule = learning_rate_schedule(config, steps_per_epoch)
    if config.optimizer == "muon":
        optimizer = _on_stacked_matrices(
            muon(
                schedule,
                weight_decay=config.weight_decay,
                adam_weight_decay=config.weight_decay,
                muon_weight_dimension_numbers={"matrices": MuonDimensionNumbers(1, 2), "others": None},
                consistent_rms=0.2,
            )
        )
    else:
        optimizer = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.weight_decay)
    parts = [optimizer]
    if config.clip_gradient_norm:
        parts.insert(0, optax.clip_by_global_norm(config.clip_gradient_norm))
    if config.model.transformer and config.text_encoder_learning_rate:
        # The whole update, weight decay included, is proportional to the learning rate.
        ratio = config.text_encoder_learning_rate / config.learning_rate
        parts.append(optax.masked(optax.scale(ratio), _in_modules(("text_encoder", "transformer"))))
    if config.encoder_learning_rate_factor != 1:
        parts.append(optax.masked(optax.scale(config.encoder_learning_rate_factor), _in_modules(*STREAMS)))
    return optax.chain(*parts) if len(parts) > 1 else optimizer


def _on_stacked_matrices(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stacks all matrices of one shape before it calls `optimizer`, and takes its updates apart again.

    A network has many small matrices, and the products of Muon are faster for a stack of them (on CPU, half the time).
    `optimizer` gets {"matrices": {"IxO": (N, I, O)}, "others": {path: parameter}}. A convolution kernel is a matrix
    whose I inputs are all entries of its window. A table of embeddings is a list of vectors, no matrix, and the kernel
    of a depthwise convolution a list of filters.
    """

    def stack(params: optax.Params) -> optax.Params:
        matrices: dict[str, list[Array]] = defaultdict(list)
        others = {}
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            if _is_matrix(path, x):
                matrices[_matrix_shape(x)].append(x.reshape(-1, x.shape[-1]))
            else:
                others[jax.tree_util.keystr(path)] = x
        return {"matrices": {shape: jnp.stack(arrays) for shape, arrays in matrices.items()}, "others": others}

    def unstack(stacked: optax.Params, like: optax.Params) -> optax.Params:
        matrices = {shape: iter(arrays) for shape, arrays in stacked["matrices"].items()}

        def take(path: KeyPath, x: Array) -> Array:
            if _is_matrix(path, x):
                return next(matrices[_matrix_shape(x)]).reshape(x.shape)
            return stacked["others"][jax.tree_util.keystr(path)]

        return jax.tree_util.tree_map_with_path(take, like)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        new_updates, state = optimizer.update(stack(updates), state, stack(params))
        return unstack(new_updates, updates), state

    return optax.GradientTransformation(lambda params: optimizer.init(stack(params)), update)


def _is_matrix(path: KeyPath, x: Array) -> bool:
    is_depthwise = x.ndim == 4 and x.shape[2] == 1 and x.shape[:2] != (1, 1)
    return x.ndim >= 2 and path[-1].key != "embedding" and not is_depthwise


def _matrix_shape(x: Array) -> str:
    return f"{math.prod(x.shape[:-1])}x{x.shape[-1]}"


def _in_modules(*paths: tuple[str, ...]) -> Callable[[Any], Any]:
    """A function from parameters to whether each belongs to one of the modules with these paths."""
    return functools.partial(
        jax.tree_util.tree_map_with_path,
        lambda path, _: any(tuple(key.key for key in path[: len(module)]) == module for module in paths),
    )
