"""The conversion table: a name in the published code's state dict <-> a path among this model's variables.

Source of the torch names: the released state dict of LBDT (Ding et al., CVPR 2022). Its `img` and `flo` are misleading
in the transfer: one set of weights serves both directions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.batch import MODEL_FIELDS, random_batch
from input_pipeline.errors import UserError, first_few
from input_pipeline.text.word_vectors import MAX_SIZE
from lbdt_jax.convert.files import first_ten
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.resnet import DEPTHS

#: Torch's counter of a BatchNorm's batches, which no result depends on.
COUNTER = ".num_batches_tracked"
#: Limit for the layers of a transfer; published are 1 and 4.
MAX_LAYERS = 64


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array in both formats.

    Attributes:
      path: collection and path among the variables; () for arrays that the published code never uses: three modules
        of its decoder, and the counters of batches.
      key: the name in torch's state dict.
      layout: "conv" (torch OIHW, flax HWIO), "dense" (torch (out, in), flax (in, out)), "channels" (torch (C, 1, 1),
        flax (C,)) or "same".
      third: of torch's packed attention projections, which third of the rows: 0 query, 1 key, 2 value.
    """

    path: tuple[str, ...]
    key: str
    layout: str = "same"
    third: int | None = None

    def from_torch(self, value: np.ndarray) -> np.ndarray:
        """Converts a torch array to a flax array; their shapes are those of `layout`."""
        if self.third is not None:
            value = np.split(value, 3)[self.third]
        if self.layout == "conv":
            return value.transpose(2, 3, 1, 0)
        if self.layout == "channels":
            return value[:, 0, 0]
        return value.T if self.layout == "dense" else value

    def to_torch(self, value: np.ndarray) -> np.ndarray:
        """Converts a flax array to a torch array, or to a third of a packed one."""
        if self.layout == "conv":
            return value.transpose(3, 2, 0, 1)
        if self.layout == "channels":
            return value[:, None, None]
        return value.T if self.layout == "dense" else value

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the torch array, packed if it has a `third`, for a flax array of that shape."""
        if self.layout == "conv":
            height, width, channels_in, channels_out = shape
            return channels_out, channels_in, height, width
        if self.layout == "channels":
            return *shape, 1, 1
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
    """A ConvNorm that is Sequential(conv, norm, ...) in torch."""
    return conv_norm(f"{key}.0", f"{key}.1", *path)


def dense(key: str, *path: str) -> Iterator[Entry]:
    """A Linear."""
    yield Entry(("params", *path, "kernel"), f"{key}.weight", "dense")
    yield Entry(("params", *path, "bias"), f"{key}.bias")


def attention(key: str, *path: str) -> Iterator[Entry]:
    """A MultiheadAttention; torch packs its three input projections into one matrix."""
    for third, name in enumerate(("query", "key", "value")):
        yield Entry(("params", *path, name, "kernel"), f"{key}.in_proj_weight", "dense", third)
        yield Entry(("params", *path, name, "bias"), f"{key}.in_proj_bias", "same", third)
    yield from dense(f"{key}.out_proj", *path, "out")


def layer_norm(key: str, *path: str) -> Iterator[Entry]:
    """A LayerNorm."""
    yield Entry(("params", *path, "scale"), f"{key}.weight")
    yield Entry(("params", *path, "bias"), f"{key}.bias")


def resnet(stream: str, depth: int, suffix: str, stages: Iterable[str]) -> Iterator[Entry]:
    """One stream. In LBDT the stem's names have a suffix and the four stages have other names than in torchvision."""
    lengths, bottleneck = DEPTHS[depth]
    yield from conv_norm(f"conv1{suffix}", f"bn1{suffix}", stream, "stem")
    for stage, torch_stage, length in zip(("res2", "res3", "res4", "res5"), stages, lengths, strict=True):
        for block in range(length):
            key, path = f"{torch_stage}.{block}", (stream, stage, f"blocks_{block}")
            for conv in range(1, 4 if bottleneck else 3):
                yield from conv_norm(f"{key}.conv{conv}", f"{key}.bn{conv}", *path, f"conv{conv}")
            if block == 0 and (stage != "res2" or bottleneck):
                yield from sequential(f"{key}.downsample", *path, "shortcut")


def convolution(key: str, *path: str) -> Iterator[Entry]:
    """A Conv2d with bias."""
    yield Entry(("params", *path, "kernel"), f"{key}.weight", "conv")
    yield Entry(("params", *path, "bias"), f"{key}.bias")


def convnext(stream: str, lengths: Iterable[int]) -> Iterator[Entry]:
    """One stream as a ConvNeXt with that many blocks in its stages, in torchvision's names."""
    yield from convolution("features.0.0", stream, "stem")
    yield from layer_norm("features.0.1", stream, "stem_norm")
    for index, (stage, length) in enumerate(zip(("res2", "res3", "res4", "res5"), lengths, strict=True)):
        if index:
            yield from layer_norm(f"features.{2 * index}.0", stream, stage, "downsample_norm")
            yield from convolution(f"features.{2 * index}.1", stream, stage, "downsample")
        for block in range(length):
            key, path = f"features.{2 * index + 1}.{block}", (stream, stage, f"blocks_{block}")
            yield Entry(("params", *path, "layer_scale"), f"{key}.layer_scale", "channels")
            yield from convolution(f"{key}.block.0", *path, "depthwise")
            yield from layer_norm(f"{key}.block.2", *path, "norm")
            yield from dense(f"{key}.block.3", *path, "expand")
            yield from dense(f"{key}.block.5", *path, "project")


def bridge(key: str, *path: str) -> Iterator[Entry]:
    """One layer of a duplex transfer."""
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
    """A Head: four ConvNorms and a convolution to one logit."""
    for index in range(4):
        yield from sequential(f"{key}.{index}", *path, f"tower_{index}")
    yield from convolution(f"{key}.4", *path, "project")


def table(depth: int, layers: int) -> list[Entry]:
    """The complete table of LBDT with ResNets of that depth and that many transfer layers, in torch's order."""
    streams = {1: "spatial", 2: "temporal"}  # by their index in the torch names
    rows: list[Entry] = []
    for index, stream in streams.items():
        rows += resnet(f"{stream}_stream", depth, f"_{index}", [f"res{stage}_{index}" for stage in (2, 3, 4, 5)])
    for kind in ("kernel", "bias"):
        for flax_name, torch_name in (("input", "ih"), ("hidden", "hh")):
            key, layout = ("weight", "dense") if kind == "kernel" else ("bias", "same")
            rows.append(
                Entry(
                    ("params", "text_encoder", f"{flax_name}_{kind}"),
                    f"text_encoder.lstm.{key}_{torch_name}_l0",
                    layout,
                )
            )
    for torch_name, stream in (("spa", "spatial"), ("tem", "temporal")):
        for index in range(4):
            rows += sequential(f"decoder.refine_{torch_name}.{index}", f"{stream}_decoder", f"res{index + 2}_branch")
    for torch_name in ("spa", "tem"):
        rows += [Entry((), row.key) for row in tower(f"decoder.{torch_name}_tower")]
    activation = "bilateral_channel_activation"
    rows += dense("decoder.fusion.img_flo_fc.0", activation, "joint")
    for torch_gate, flax_gate in (("txt", "language"), ("enhance", "enhance")):
        for torch_name, stream in (("img", "spatial"), ("flo", "temporal")):
            rows += dense(f"decoder.fusion.{torch_name}_{torch_gate}_fc", activation, f"{stream}_{flax_gate}")
    rows += sequential("decoder.fusion.fusion_cat_conv", activation, "fuse")
    rows += tower("decoder.fuse_tower", "head")
    rows += [Entry((), "decoder.mask_head.weight"), Entry((), "decoder.mask_head.bias")]

    def projections(stage: int, torch_name: str, flax_name: str) -> Iterator[Entry]:
        for index, stream in streams.items():
            key = f"conv_r{stage}_{index}_{torch_name}"
            yield from sequential(key, f"duplex_transfer{stage}", f"{stream}_{flax_name}")

    rows += projections(5, "reduce", "reduce")
    for stage in (4, 5):
        for layer in range(layers):
            rows += bridge(f"transformer.stage{stage}.layers.{layer}", f"duplex_transfer{stage}", f"bridges_{layer}")
    rows += projections(4, "reduce", "reduce")
    rows += projections(4, "up", "expand")
    rows += projections(5, "up", "expand")
    return rows


@functools.cache
def shapes(depth: int, layers: int, word_vector_size: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every variable, in the widths of the published model."""
    batch = random_batch(1, (32, 32), 1, word_vector_size)
    model = LBDT(resnet_depth=depth, transfer_layers=layers)
    init = functools.partial(model.init, mutable=("params", "batch_stats"))
    inputs = [batch[name] for name in MODEL_FIELDS]
    variables = jax.eval_shape(lambda: init(jax.random.key(0), *inputs))
    return {path: array.shape for path, array in flatten_dict(variables).items()}


@functools.cache
def torch_shapes(depth: int, layers: int, word_vector_size: int) -> dict[str, tuple[int, ...]]:
    """Torch name -> shape of the complete published state dict, in its order."""
    flax_shapes = shapes(depth, layers, word_vector_size)
    rows = table(depth, layers)
    used = {row.key: row.torch_shape(flax_shapes[row.path]) for row in rows if row.path}
    used |= {"decoder.mask_head.weight": (1, 3, 3, 3), "decoder.mask_head.bias": (1,)}
    # The unused towers have the shapes of the one that is used.
    same_shape = {
        row.key: row.key.replace("spa_tower", "fuse_tower").replace("tem_tower", "fuse_tower") for row in rows
    }
    return {key: () if key.endswith(COUNTER) else used[used_key] for key, used_key in same_shape.items()}


def torch_architecture(keys: Iterable[str]) -> tuple[int, int]:
    """ResNet depth and number of transfer layers, from the names in a state dict.

    Raises:
      UserError: the names are not those of an LBDT.
    """
    keys = set(keys)
    layers = len({k.split(".")[3] for k in keys if k.startswith("transformer.stage4.layers.")})
    blocks = len({k.split(".")[1] for k in keys if k.startswith("res4_1.")})
    depth = _depth(blocks, any(k.startswith("res4_1.") and ".conv3." in k for k in keys))
    if depth is None or not 0 < layers <= MAX_LAYERS:
        raise UserError(
            f"This is not a state dict of LBDT: it has {blocks} blocks named res4_1.* and {layers} layers named "
            f"transformer.stage4.layers.*; expected a ResNet of depth 18, 34, 50 or 101 and 1 to {MAX_LAYERS} layers. "
            f"Its names are such as {', '.join(repr(name)[:100] for name in sorted(keys)[:3])}."
        )
    return depth, layers


def architecture(variables: Mapping[str, Mapping]) -> tuple[int | None, int]:
    """ResNet depth (None if it is not one of DEPTHS) and number of transfer layers of this model's variables."""
    params = variables.get("params", {})
    layers = sum(name.startswith("bridges_") for name in params.get("duplex_transfer4", {}))
    blocks = params.get("spatial_stream", {}).get("res4", {})
    return _depth(len(blocks), "conv3" in blocks.get("blocks_0", {})), layers


def _depth(res4_blocks: int, bottleneck: bool) -> int | None:
    # The ResNets differ in the number of res4 blocks, or in their kind.
    depths = (depth for depth, (lengths, b) in DEPTHS.items() if (lengths[2], b) == (res4_blocks, bottleneck))
    return next(depths, None)


def check(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], optional: Iterable[str] = ()
) -> None:
    """Compares a state dict with the expected names, shapes and types.

    Args:
      state: torch name -> array.
      expected: torch name -> shape; all are float32 except int64 counters.
      optional: expected names that may be missing.

    Raises:
      UserError: names are missing or unexpected, arrays have another shape or type, or numbers are not finite. The
        message lists the first ten.
    """
    missing = sorted(expected.keys() - set(optional) - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        listed = (f"[{first_few([*map(repr, names)])}]" for names in (missing, unexpected))
        raise UserError("The state dict does not fit.\n  missing: {}\n  unexpected: {}".format(*listed))
    wrong = []
    for key in sorted(state):
        dtype = "int64" if key.endswith(COUNTER) else "float32"
        if np.shape(state[key]) != expected[key]:
            wrong.append(f"  {key}: expected {expected[key]}, found {np.shape(state[key])}")
        elif state[key].dtype != dtype:
            wrong.append(f"  {key}: expected {dtype}, found {state[key].dtype}")
    if wrong:
        raise UserError(
            "\n".join(["The state dict does not fit: arrays have other shapes or types.", *first_ten(wrong)])
        )
    infinite = [f"  {key}" for key in sorted(state.keys() - {*optional}) if not np.isfinite(state[key]).all()]
    if infinite:
        raise UserError(
            "\n".join(["Some numbers are NaN or infinite. Did the training diverge?", *first_ten(infinite)])
        )


def from_torch(state: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """Converts a state dict of the published code to variables {"params", "batch_stats"}, as views of its arrays.

    Args:
      state: torch name -> array, float32; arrays that the published code never uses may be missing.

    Raises:
      UserError: as `check`, compared with the published names and shapes. Only the size of the word vectors may differ.
    """
    depth, layers = torch_architecture(state)
    rows = table(depth, layers)
    *_, word_vector_size = np.shape(state.get("text_encoder.lstm.weight_ih_l0", ())) or (1,)
    if not 1 <= word_vector_size <= MAX_SIZE:
        raise UserError(f"text_encoder.lstm.weight_ih_l0 is for word vectors of size {word_vector_size}.")
    check(state, torch_shapes(depth, layers, word_vector_size), [row.key for row in rows if not row.path])
    return unflatten_dict({row.path: row.from_torch(state[row.key]) for row in rows if row.path})


def unused(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a state dict that the published code never uses: three modules and the counters of batches."""
    return {row.key: state[row.key] for row in table(*torch_architecture(state)) if not row.path and row.key in state}


def to_torch(variables: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Converts variables to a state dict in torch's order, without the arrays that the published code never uses.

    Raises:
      UserError: the variables are not those of an LBDT of the published widths.
    """
    if "transformer" in variables["params"].get("text_encoder", {}):
        raise UserError(
            "This model encodes sentences with a transformer, which the published code does not have. Its weights can "
            "be written to a folder, but not to a state dict."
        )
    flat = flatten_dict(dict(variables))
    depth, layers = architecture(variables)
    rows = [row for row in table(depth, layers) if row.path] if depth else []
    if {row.path for row in rows} != flat.keys():
        wrong = sorted("/".join(path) for path in {row.path for row in rows} ^ flat.keys())
        listed = first_few([*map(repr, wrong)])
        raise UserError(
            f"These variables are not a complete LBDT as published; missing or unexpected: [{listed}]. A network with "
            "other parts, such as ConvNeXts, can be written to a folder, but not to a state dict."
        )
    word_vector_size = flat["params", "text_encoder", "input_kernel"].shape[0]
    wrong = [
        f"  {'/'.join(path)}: expected {shape}, found {flat[path].shape}"
        for path, shape in sorted(shapes(depth, layers, word_vector_size).items())
        if flat[path].shape != shape
    ]
    if wrong:
        raise UserError("\n".join(["The published code has other widths than this model.", *first_ten(wrong)]))
    state: dict[str, list[np.ndarray]] = {}
    for row in rows:  # packed projections are in the table's order: query, key, value
        state.setdefault(row.key, []).append(row.to_torch(np.asarray(flat[row.path])))
    return {key: np.concatenate(parts) if len(parts) > 1 else parts[0] for key, parts in state.items()}


def complete(state: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Completes a state dict, so that the published code loads it with strict=True.

    Args:
      state: the result of `to_torch`.
      kept: the result of `unused` for the state dict that the model was converted from, if any. Arrays that it lacks
        are filled in: 1 for the scales and variances of norms, 0 for everything else.

    Returns:
      torch name -> array, in torch's order.
    """
    size = state["text_encoder.lstm.weight_ih_l0"].shape[1]
    arrays = {**kept, **state}

    def default(key: str, shape: tuple[int, ...]) -> np.ndarray:
        value = 1 if key.endswith((".1.weight", ".running_var")) else 0
        return np.full(shape, value, np.int64 if key.endswith(COUNTER) else np.float32)

    expected = torch_shapes(*torch_architecture(state), size)
    return {key: arrays[key] if key in arrays else default(key, shape) for key, shape in expected.items()}
