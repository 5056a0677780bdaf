"""The table: a torch name of the published code <-> a path among our variables.

Source of the torch names: the released state dict of LBDT (Ding et al., CVPR 2022). `img`, `flo` in them mislead:
one set of weights serves both directions of the transfer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.batch import MODEL_FIELDS, random_batch
from input_pipeline.errors import UserError
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.resnet import DEPTHS

#: Torch's counter of the batches that a BatchNorm has seen; nothing depends on it.
COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays and where torch keeps it.

    Attributes:
      path: collection and path among our variables; () for what the published code keeps and never uses: three
        towers of its decoder, and the counters of batches.
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
    yield Entry((), key + COUNTER)


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


def resnet(stream: str, depth: int, suffix: str, stages: Iterable[str]) -> Iterator[Entry]:
    """One stream; torchvision and LBDT differ in a suffix to the stem's names and in the names of the four stages."""
    lengths, bottleneck = DEPTHS[depth]
    yield from conv_norm(f"conv1{suffix}", f"bn1{suffix}", stream, "stem")
    for stage, torch_stage, length in zip(("res2", "res3", "res4", "res5"), stages, lengths, strict=True):
        for block in range(length):
            key, path = f"{torch_stage}.{block}", (stream, stage, f"blocks_{block}")
            for conv in range(1, 4 if bottleneck else 3):
                yield from conv_norm(f"{key}.conv{conv}", f"{key}.bn{conv}", *path, f"conv{conv}")
            if block == 0 and (stage != "res2" or bottleneck):
                yield from sequential(f"{key}.downsample", *path, "shortcut")


def bridge(key: str, *path: str) -> Iterator[Entry]:
    """One layer of a transfer."""
    yield from attention(f"{key}.self_attn_words", *path, "words_to_words")
    yield from attention(f"{key}.cross_attn_img", *path, "words_from_source")
    yield from attention(f"{key}.cross_attn_flo", *path, "target_from_words")
    yield from dense(f"{key}.linear1", *path, "feed_forward1")
    yield from dense(f"{key}.linear2", *path, "feed_forward2")
    yield from layer_norm(f"{key}.norm_words_1", *path, "words_norm")
    yield from layer_norm(f"{key}.norm_words_2", *path, "source_norm")
    yield from layer_norm(f"{key}.norm_flo", *path, "target_norm")
    yield from layer_norm(f"{key}.norm_flo2", *path, "feed_forward_norm")


def tower(key: str, *path: str) -> Iterator[Entry]:
    """The head: four ConvNorms and a convolution to one logit."""
    for index in range(4):
        yield from sequential(f"{key}.{index}", *path, f"tower_{index}")
    yield Entry(("params", *path, "project", "kernel"), f"{key}.4.weight", "conv")
    yield Entry(("params", *path, "project", "bias"), f"{key}.4.bias")


def table(depth: int, layers: int) -> list[Entry]:
    """The whole table of LBDT with ResNets of that depth and that many transfer layers, in torch's order."""
    streams = {1: "spatial", 2: "temporal"}
    rows: list[Entry] = []
    for number, stream in streams.items():
        rows += resnet(f"{stream}_stream", depth, f"_{number}", [f"res{stage}_{number}" for stage in (2, 3, 4, 5)])
    for kind in ("kernel", "bias"):
        for ours, theirs in (("input", "ih"), ("hidden", "hh")):
            key, layout = ("weight", "dense") if kind == "kernel" else ("bias", "same")
            rows.append(
                Entry(("params", "text_encoder", f"{ours}_{kind}"), f"text_encoder.lstm.{key}_{theirs}_l0", layout)
            )
    for torch_name, stream in (("spa", "spatial"), ("tem", "temporal")):
        for index in range(4):
            rows += sequential(f"decoder.refine_{torch_name}.{index}", f"{stream}_decoder", f"res{index + 2}_branch")
    for torch_name in ("spa", "tem"):
        rows += [Entry((), row.key) for row in tower(f"decoder.{torch_name}_tower")]
    activation = "bilateral_channel_activation"
    rows += dense("decoder.fusion.img_flo_fc.0", activation, "joint")
    for role, ours in (("txt", "language"), ("enhance", "enhance")):
        for torch_name, stream in (("img", "spatial"), ("flo", "temporal")):
            rows += dense(f"decoder.fusion.{torch_name}_{role}_fc", activation, f"{stream}_{ours}")
    rows += sequential("decoder.fusion.fusion_cat_conv", activation, "fuse")
    rows += tower("decoder.fuse_tower", "head")
    rows += [Entry((), "decoder.mask_head.weight"), Entry((), "decoder.mask_head.bias")]

    def around(stage: int, torch_name: str, ours: str) -> Iterator[Entry]:
        for number, stream in streams.items():
            key = f"conv_r{stage}_{number}_{torch_name}"
            yield from sequential(key, f"duplex_transfer{stage}", f"{stream}_{ours}")

    rows += around(5, "reduce", "reduce")
    for stage in (4, 5):
        for layer in range(layers):
            rows += bridge(f"transformer.stage{stage}.layers.{layer}", f"duplex_transfer{stage}", f"bridges_{layer}")
    rows += around(4, "reduce", "reduce")
    rows += around(4, "up", "expand")
    rows += around(5, "up", "expand")
    return rows


@functools.cache
def shapes(depth: int, layers: int, word_vector_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every one of our arrays, in the widths of the published network."""
    batch = random_batch(1, (32, 32), 1, word_vector_size)
    model = LBDT(resnet_depth=depth, transfer_layers=layers)
    init = functools.partial(model.init, mutable=("params", "batch_stats"))
    inputs = [batch[name] for name in MODEL_FIELDS]
    variables = jax.eval_shape(lambda: init(jax.random.key(0), *inputs))
    return {path: array.shape for path, array in flatten_dict(variables).items()}


@functools.cache
def torch_shapes(depth: int, layers: int, word_vector_size: int) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of the whole published state dict, in its order."""
    ours = shapes(depth, layers, word_vector_size)
    rows = table(depth, layers)
    found = {row.key: row.torch_shape(ours[row.path]) for row in rows if row.path}
    found |= {"decoder.mask_head.weight": (1, 3, 3, 3), "decoder.mask_head.bias": (1,)}
    # The unused towers are as the one that is used.
    alike = {row.key: row.key.replace("spa_tower", "fuse_tower").replace("tem_tower", "fuse_tower") for row in rows}
    return {key: () if key.endswith(COUNTER) else found[model] for key, model in alike.items()}


def recognise(keys: Iterable[str]) -> tuple[int, int]:
    """ResNet depth and number of transfer layers, read from the names of a state dict.

    Raises:
      UserError: the names are not those of an LBDT.
    """
    keys = set(keys)
    layers = len({k.split(".")[3] for k in keys if k.startswith("transformer.stage4.layers.")})
    blocks = len({k.split(".")[1] for k in keys if k.startswith("res4_1.")})
    depth = _depth(blocks, any(k.startswith("res4_1.") and ".conv3." in k for k in keys))
    if depth is None or not layers:
        raise UserError(
            f"This is no state dict of LBDT: it has {blocks} blocks named res4_1.* and {layers} layers named "
            "transformer.stage4.layers.*; expected a ResNet of depth 18, 34, 50 or 101 and at least one layer."
        )
    return depth, layers


def describe(variables: Mapping[str, Mapping]) -> tuple[int | None, int]:
    """ResNet depth (None if it is none of ours) and number of transfer layers of our variables."""
    params = variables.get("params", {})
    layers = sum(name.startswith("bridges_") for name in params.get("duplex_transfer4", {}))
    blocks = params.get("spatial_stream", {}).get("res4", {})
    return _depth(len(blocks), "conv3" in blocks.get("blocks_0", {})), layers


def _depth(res4_blocks: int, bottleneck: bool) -> int | None:
    # Every ResNet has another res4.
    fits = (depth for depth, (lengths, b) in DEPTHS.items() if (lengths[2], b) == (res4_blocks, bottleneck))
    return next(fits, None)


def check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()
) -> None:
    """Compares a state dict with the names and shapes that it should have.

    Args:
      state: torch name -> array.
      expected: torch name -> shape; float32, counters int64.
      optional: the expected names that need not be there.

    Raises:
      UserError: lists all names that are missing or unexpected, or else all arrays of another shape or type.
    """
    missing = sorted(expected.keys() - set(optional) - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise UserError(f"The state dict does not fit.\n  missing: {missing}\n  unexpected: {unexpected}")
    wrong = []
    for key in sorted(state):
        dtype = "int64" if key.endswith(COUNTER) else "float32"
        if np.shape(state[key]) != expected[key]:
            wrong.append(f"  {key}: expected {expected[key]}, found {np.shape(state[key])}")
        elif state[key].dtype != dtype:
            wrong.append(f"  {key}: expected {dtype}, found {state[key].dtype}")
    if wrong:
        raise UserError("\n".join(["The state dict does not fit, arrays have other shapes or types.", *wrong]))


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Our variables {"params", "batch_stats"} of a state dict of the published code, as views of its arrays.

    Args:
      state: torch name -> array, float32; what the published code never uses may be there or not.

    Raises:
      UserError: names are missing or unexpected, or arrays have another shape or type than the published ones (all
        are listed). Only the size of the word vectors is free.
    """
    depth, layers = recognise(state)
    rows = table(depth, layers)
    *_, word_vector_size = np.shape(state.get("text_encoder.lstm.weight_ih_l0", ())) or (1,)
    check(state, torch_shapes(depth, layers, word_vector_size), [row.key for row in rows if not row.path])
    return unflatten_dict({row.path: row.from_torch(state[row.key]) for row in rows if row.path})


def unused(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a state dict that the published code never uses: three towers and the counters of batches."""
    return {row.key: state[row.key] for row in table(*recognise(state)) if not row.path and row.key in state}


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """The state dict of our variables, in torch's order, without what the published code never uses.

    Raises:
      UserError: the variables are not those of an LBDT of the published widths.
    """
    if "transformer" in variables["params"].get("text_encoder", {}):
        raise UserError(
            "This network reads sentences with a transformer, which the published code does not have. From folder to "
            "folder, its weights are taken as they are."
        )
    flat = flatten_dict(dict(variables))
    depth, layers = describe(variables)
    rows = [row for row in table(depth, layers) if row.path] if depth else []
    if {row.path for row in rows} != flat.keys():
        wrong = sorted("/".join(path) for path in {row.path for row in rows} ^ flat.keys())
        raise UserError(f"These variables are not a complete LBDT; missing or unexpected: {wrong}")
    word_vector_size = flat["params", "text_encoder", "input_kernel"].shape[0]
    wrong = [
        f"  {'/'.join(path)}: expected {shape}, found {flat[path].shape}"
        for path, shape in sorted(shapes(depth, layers, word_vector_size).items())
        if flat[path].shape != shape
    ]
    if wrong:
        raise UserError("\n".join(["The published code has this network in other widths only.", *wrong]))
    state: dict[str, list[np.ndarray]] = {}
    for row in rows:  # of packed projections the query comes first, then the key, then the value
        state.setdefault(row.key, []).append(row.to_torch(np.asarray(flat[row.path])))
    return {key: np.concatenate(parts) if len(parts) > 1 else parts[0] for key, parts in state.items()}


def complete(state: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict that the published code loads with strict=True: names and order are its own.

    Args:
      state: what `to_torch` gives.
      kept: what `unused` gave, if anything. What isn't there is filled in plainly: norms of scale and variance 1,
        everything else 0.
    """
    size = state["text_encoder.lstm.weight_ih_l0"].shape[1]
    known = {**kept, **state}

    def filled(key: str, shape: tuple[int, ...]) -> np.ndarray:
        value = 1 if key.endswith((".1.weight", ".running_var")) else 0
        return np.full(shape, value, np.int64 if key.endswith(COUNTER) else np.float32)

    expected = torch_shapes(*recognise(state), size)
    return {key: known[key] if key in known else filled(key, shape) for key, shape in expected.items()}
