"""The table: a torch name of the published code <-> a path among our variables.

Source of the torch names: the released state dict of LBDT (Ding et al., CVPR 2022). `img`, `flo` in them mislead:
one set of weights serves both directions of the transfer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.batch import MODEL_FIELDS, random_batch
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.resnet import DEPTHS

#: Towers that the published code builds and never runs, and torch's counters of batches: accepted, not kept.
DEAD = re.compile(r"^decoder\.(spa_tower|tem_tower|mask_head)\.|\.num_batches_tracked$")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays and where torch keeps it.

    Attributes:
      path: collection and path among our variables.
      key: torch's name.
      layout: "conv" (torch OIHW, ours HWIO), "dense" (torch (out, in), ours (in, out)) or "same".
      third: for torch's packed attention projections, which third of the rows: 0 query, 1 key, 2 value.
    """

    path: tuple[str, ...]
    key: str
    layout: str = "same"
    third: int | None = None

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        """Our array of a torch array."""
        if self.third is not None:
            value = np.split(value, 3)[self.third]
        if self.layout == "conv":
            return value.transpose(2, 3, 1, 0)
        return value.T if self.layout == "dense" else value

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """The torch array (or the third of it) of our array."""
        if self.layout == "conv":
            return value.transpose(3, 2, 0, 1)
        return value.T if self.layout == "dense" else value

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the torch array, all thirds of it, of our array of that shape."""
        if self.layout == "conv":
            height, width, channels_in, channels_out = shape
            return channels_out, channels_in, height, width
        if self.layout == "dense":
            shape = shape[::-1]
        return shape if self.third is None else (3 * shape[0], *shape[1:])


def norm(key: str, *path: str) -> Iterator[Entry]:
    """A BatchNorm."""
    yield Entry(("params", *path, "scale"), f"{key}.weight")
    yield Entry(("params", *path, "bias"), f"{key}.bias")
    yield Entry(("batch_stats", *path, "mean"), f"{key}.running_mean")
    yield Entry(("batch_stats", *path, "variance"), f"{key}.running_var")


def conv_norm(conv_key: str, norm_key: str, *path: str) -> Iterator[Entry]:
    """A ConvNorm."""
    yield Entry(("params", *path, "conv", "kernel"), f"{conv_key}.weight", "conv")
    yield from norm(norm_key, *path, "norm")


def sequential(key: str, *path: str) -> Iterator[Entry]:
    """A ConvNorm that torch keeps as Sequential(conv, norm, ...)."""
    return conv_norm(f"{key}.0", f"{key}.1", *path)


def dense(key: str, *path: str) -> Iterator[Entry]:
    """A Linear."""
    yield Entry(("params", *path, "kernel"), f"{key}.weight", "dense")
    yield Entry(("params", *path, "bias"), f"{key}.bias")


def attention(key: str, *path: str) -> Iterator[Entry]:
    """A MultiheadAttention, whose input projections torch packs into one matrix."""
    for third, name in enumerate(("query", "key", "value")):
        yield Entry(("params", *path, name, "kernel"), f"{key}.in_proj_weight", "dense", third)
        yield Entry(("params", *path, name, "bias"), f"{key}.in_proj_bias", "same", third)
    yield from dense(f"{key}.out_proj", *path, "out")


def layer_norm(key: str, *path: str) -> Iterator[Entry]:
    """A LayerNorm."""
    yield Entry(("params", *path, "scale"), f"{key}.weight")
    yield Entry(("params", *path, "bias"), f"{key}.bias")


def resnet(number: int, stream: str, depth: int) -> Iterator[Entry]:
    """One stream; torch numbers them, 1 spatial, 2 temporal."""
    lengths, bottleneck = DEPTHS[depth]
    yield from conv_norm(f"conv1_{number}", f"bn1_{number}", stream, "stem")
    for stage, length in zip(("res2", "res3", "res4", "res5"), lengths, strict=True):
        for block in range(length):
            key, path = f"{stage}_{number}.{block}", (stream, stage, f"blocks_{block}")
            for conv in range(1, 4 if bottleneck else 3):
                yield from conv_norm(f"{key}.conv{conv}", f"{key}.bn{conv}", *path, f"conv{conv}")
            if block == 0 and (stage != "res2" or bottleneck):
                yield from sequential(f"{key}.downsample", *path, "shortcut")


def bridge(key: str, *path: str) -> Iterator[Entry]:
    """One layer of a transfer."""
    yield from attention(f"{key}.self_attn_words", *path, "words_to_words")
    yield from layer_norm(f"{key}.norm_words_1", *path, "words_norm")
    yield from attention(f"{key}.cross_attn_img", *path, "words_from_source")
    yield from layer_norm(f"{key}.norm_words_2", *path, "source_norm")
    yield from attention(f"{key}.cross_attn_flo", *path, "target_from_words")
    yield from layer_norm(f"{key}.norm_flo", *path, "target_norm")
    yield from dense(f"{key}.linear1", *path, "feed_forward1")
    yield from dense(f"{key}.linear2", *path, "feed_forward2")
    yield from layer_norm(f"{key}.norm_flo2", *path, "feed_forward_norm")


def table(depth: int, layers: int) -> list[Entry]:
    """The whole table of LBDT with ResNets of that depth and that many transfer layers."""
    streams = {1: "spatial", 2: "temporal"}
    rows: list[Entry] = []
    for number, stream in streams.items():
        rows += resnet(number, f"{stream}_stream", depth)
    for stage in (4, 5):
        transfer = f"duplex_transfer{stage}"
        for number, stream in streams.items():
            rows += sequential(f"conv_r{stage}_{number}_reduce", transfer, f"{stream}_reduce")
            rows += sequential(f"conv_r{stage}_{number}_up", transfer, f"{stream}_expand")
        for layer in range(layers):
            rows += bridge(f"transformer.stage{stage}.layers.{layer}", transfer, f"bridges_{layer}")
    for torch_name, stream in (("spa", "spatial"), ("tem", "temporal")):
        for index in range(4):
            rows += sequential(f"decoder.refine_{torch_name}.{index}", f"{stream}_decoder", f"res{index + 2}_branch")
    activation = "bilateral_channel_activation"
    for torch_name, stream in (("img", "spatial"), ("flo", "temporal")):
        rows += dense(f"decoder.fusion.{torch_name}_txt_fc", activation, f"{stream}_language")
        rows += dense(f"decoder.fusion.{torch_name}_enhance_fc", activation, f"{stream}_enhance")
    rows += dense("decoder.fusion.img_flo_fc.0", activation, "joint")
    rows += sequential("decoder.fusion.fusion_cat_conv", activation, "fuse")
    for index in range(4):
        rows += sequential(f"decoder.fuse_tower.{index}", "head", f"tower_{index}")
    rows.append(Entry(("params", "head", "project", "kernel"), "decoder.fuse_tower.4.weight", "conv"))
    rows.append(Entry(("params", "head", "project", "bias"), "decoder.fuse_tower.4.bias"))
    for ours, theirs in (("input", "ih"), ("hidden", "hh")):
        rows.append(
            Entry(("params", "text_encoder", f"{ours}_kernel"), f"text_encoder.lstm.weight_{theirs}_l0", "dense")
        )
        rows.append(Entry(("params", "text_encoder", f"{ours}_bias"), f"text_encoder.lstm.bias_{theirs}_l0"))
    return rows


@functools.cache
def shapes(depth: int, layers: int, word_vector_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every one of our arrays, in the widths of the published network."""
    batch = random_batch(1, (32, 32), 1, word_vector_size)
    model = LBDT(resnet_depth=depth, transfer_layers=layers)
    init = functools.partial(model.init, mutable=("params", "batch_stats"))
    variables = jax.eval_shape(init, jax.random.key(0), *(batch[name] for name in MODEL_FIELDS))
    return {path: array.shape for path, array in flatten_dict(variables).items()}


def recognise(keys: Iterable[str]) -> tuple[int, int]:
    """ResNet depth and number of transfer layers, read from the names of a state dict.

    Raises:
      ValueError: the names are not those of an LBDT.
    """
    keys = set(keys)
    layers = len({k.split(".")[3] for k in keys if k.startswith("transformer.stage4.layers.")})
    blocks = len({k.split(".")[1] for k in keys if k.startswith("res4_1.")})
    bottleneck = "res4_1.0.conv3.weight" in keys
    for depth, (lengths, has_bottleneck) in DEPTHS.items():
        if (lengths[2], has_bottleneck) == (blocks, bottleneck) and layers:
            # ResNet-34 and -18 differ in res4 as well, so the first fit is the only one.
            return depth, layers
    raise ValueError(
        f"This is no state dict of LBDT: it has {blocks} blocks named res4_1.* and {layers} layers named "
        "transformer.stage4.layers.*; expected a ResNet of depth 18, 34, 50 or 101 and at least one layer."
    )


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Our variables {"params", "batch_stats"} of a state dict of the published code.

    Args:
      state: torch name -> array; the dead towers and the batch counters may be there or not.

    Raises:
      ValueError: names are missing or unexpected, or arrays have another shape than the published ones (all are
        listed). Only the size of the word vectors is free.
    """
    depth, layers = recognise(state)
    rows = table(depth, layers)
    expected = {row.key for row in rows}
    missing = sorted(expected - state.keys())
    unexpected = sorted(key for key in state.keys() - expected if not DEAD.search(key))
    if missing or unexpected:
        raise ValueError(f"The state dict does not fit.\n  missing: {missing}\n  unexpected: {unexpected}")
    *_, word_vector_size = np.shape(state["text_encoder.lstm.weight_ih_l0"]) or (1,)
    ours = shapes(depth, layers, word_vector_size)
    wrong = {}
    for row in rows:
        wanted, found = row.torch_shape(ours[row.path]), np.shape(state[row.key])
        if wanted != found:
            wrong[row.key] = f"  {row.key}: expected {wanted}, found {found}"
    if wrong:
        raise ValueError("\n".join(["The state dict does not fit, arrays have other shapes.", *sorted(wrong.values())]))
    return unflatten_dict({row.path: row.from_torch(state[row.key]) for row in rows})


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The state dict of our variables, without the dead towers and the batch counters.

    Raises:
      ValueError: the variables are not those of an LBDT.
    """
    flat = flatten_dict(dict(variables))
    layers = len({path[2] for path in flat if path[1] == "duplex_transfer4" and path[2].startswith("bridges_")})
    blocks = {path[3] for path in flat if path[1:3] == ("spatial_stream", "res4")}
    bottleneck = ("params", "spatial_stream", "res4", "blocks_0", "conv3", "conv", "kernel") in flat
    depths = [d for d, (lengths, b) in DEPTHS.items() if (lengths[2], b) == (len(blocks), bottleneck)]
    rows = table(depths[0], layers) if depths else []
    if {row.path for row in rows} != flat.keys():
        wrong = sorted("/".join(path) for path in {row.path for row in rows} ^ flat.keys())
        raise ValueError(f"These variables are not a complete LBDT; missing or unexpected: {wrong}")
    state: dict[str, list[np.ndarray]] = {}
    for row in sorted(rows, key=lambda row: row.third or 0):
        state.setdefault(row.key, []).append(row.to_torch(np.asarray(flat[row.path])))
    return {key: np.concatenate(parts) if len(parts) > 1 else parts[0] for key, parts in state.items()}
