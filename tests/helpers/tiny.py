"""A complete LBDT that is small enough to train in seconds, and batches for it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base
from input_pipeline.batch import Batch, random_batch
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.step import TrainState, initial_state, initial_variables, make_model

WORD_VECTOR_SIZE = 6
STEPS_PER_EPOCH = 1000


def tiny_config() -> ConfigDict:
    """configs/base.py with ResNet-18 at an eighth of the width, and everything else as narrow."""
    config = base.get_config()
    config.image_size = (64, 64)
    config.max_words = 5
    config.word_vectors = f"random:{WORD_VECTOR_SIZE}"
    config.batch_size = 8
    config.model.update(
        resnet_depth=18, stream_width=8, transfer_layers=1, transfer_width=16, attention_heads=2, decoder_width=8
    )
    return config


def tiny_batch(config: ConfigDict, seed: int = 0) -> Batch:
    """A batch of noise with the configuration's sizes."""
    return random_batch(config.batch_size, config.image_size, config.max_words, WORD_VECTOR_SIZE, seed)


@functools.cache
def tiny_variables(dtype: str = "float32", seed: int = 0, transfer_layers: int = 1) -> dict[str, Any]:
    """Random variables for `tiny_config` as numpy arrays. The statistics and norms are not just zeros and ones."""
    config = tiny_config()
    config.model.transfer_layers = transfer_layers
    shapes = jax.eval_shape(lambda: initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], array: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(array.shape)
        if path[-1].key in ("scale", "variance"):
            return np.asarray(np.exp(0.1 * noise), dtype)
        fan_in = max(1, np.prod(array.shape[:-1])) if array.ndim > 1 else 100
        return np.asarray(noise / np.sqrt(fan_in), dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def tiny_state(config: ConfigDict) -> TrainState:
    """The state before the first step as numpy arrays, which can't be donated; of config.model.dtype."""
    return jax.device_get(initial_state(tiny_variables(config.model.dtype), make_optimizer(config, STEPS_PER_EPOCH)))
