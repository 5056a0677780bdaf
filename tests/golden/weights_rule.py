"""Generates the weights that the golden numbers were computed with. Needs numpy only.

A manifest is a list of [key, shape, dtype] rows, as in manifest_*.json. Each tensor has a random stream of its own,
seeded by its name and the seed, so that it does not depend on the other tensors or on their order.

    state = make_state(json.load(open("manifest_lbdt4_r50.json")), seed=0)
"""

from __future__ import annotations

import zlib

import numpy as np

LSTM_HIDDEN = 512


def stream(name: str, seed: int) -> np.random.Generator:
    """Returns the random stream of a name: PCG64 seeded by the CRC-32 of 'name|seed'."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}|{seed}".encode())))


def make_tensor(key: str, shape: list[int], dtype: str, seed: int, is_norm: bool) -> np.ndarray:
    """Returns a tensor; `is_norm` says that it belongs to a BatchNorm or LayerNorm."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = stream(key, seed)

    def normal(std: float) -> np.ndarray:
        return rng.standard_normal(shape) * std

    def uniform(low: float, high: float) -> np.ndarray:
        return low + (high - low) * rng.random(shape)

    if key.endswith("running_mean"):
        value = normal(0.1)
    elif key.endswith("running_var"):
        value = uniform(0.5, 1.5)
    elif ".lstm." in key:  # three times PyTorch's bound
        bound = 3.0 / np.sqrt(LSTM_HIDDEN)
        value = uniform(-bound, bound)
    elif is_norm:
        value = norm_gain(key) * uniform(0.5, 1.5) if key.endswith("weight") else normal(0.1)
    elif key.endswith("bias"):  # linear, attention, conv
        value = normal(0.05)
    elif len(shape) == 4:  # conv, (out, in, kh, kw)
        fan_in = shape[1] * shape[2] * shape[3]
        value = normal(conv_gain(key) * np.sqrt(2.0 / fan_in))
        value -= value.mean(axis=(1, 2, 3), keepdims=True)
    else:  # linear, attention, (out, in)
        value = normal(linear_gain(key) / np.sqrt(shape[1]))
    return value.astype(dtype)


def conv_gain(key: str) -> float:
    """Keeps activations near 1 through the network, and the logits between -10 and 10."""
    if ".downsample." in key:
        return 0.7
    if key.startswith("decoder.f"):  # fusion and its tower
        return 1.3
    return 0.9


def norm_gain(key: str) -> float:
    """Small at the end of a residual block, so that rounding errors and gradients do not grow from block to block."""
    return 0.3 if key.endswith(".bn3.weight") else 1.0


def linear_gain(key: str) -> float:
    """Larger for the projections to query, key and value."""
    return 2.0 if key.endswith("in_proj_weight") else 1.0


def make_state(manifest: list[tuple[str, list[int], str]], seed: int) -> dict[str, np.ndarray]:
    """Returns key -> array for all rows of a manifest, in its order."""
    one_dimensional = {key for key, shape, _ in manifest if len(shape) == 1}
    state = {}
    for key, shape, dtype in manifest:
        is_norm = key.rpartition(".")[0] + ".weight" in one_dimensional
        state[key] = make_tensor(key, shape, dtype, seed, is_norm)
    return state
