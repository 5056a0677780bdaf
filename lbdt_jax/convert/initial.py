"""Initial weights for training: an image encoder of torchvision or Hugging Face, or a complete LBDT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from input_pipeline.text.encoders import SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors, check_same_vectors, load_word_vectors
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint
from lbdt_jax.checkpoint_folder import resolve_best
from lbdt_jax.checkpoint_shared import is_shared
from lbdt_jax.convert.files import first_ten, import_torch, read_safetensors, read_torch
from lbdt_jax.convert.names import COUNTER, Entry, architecture, check, convnext, from_torch, resnet
from lbdt_jax.hub import locate_checkpoint

#: torchvision's ImageNet weights, IMAGENET1K_V1, of image encoders of the published width
#: (https://pytorch.org/vision/stable/models.html).
DOWNLOADS = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "convnext_tiny": "https://download.pytorch.org/models/convnext_tiny-983f1562.pth",
    "convnext_small": "https://download.pytorch.org/models/convnext_small-0c510722.pth",
    "convnext_base": "https://download.pytorch.org/models/convnext_base-6075fbad.pth",
}
#: Fields of config.model that change what a network computes, and none of its arrays.
FIELDS_WITHOUT_ARRAYS = ("attention_heads", "frame_difference")
#: Limit for a config.json; that of microsoft/resnet-50 has 70 kB.
MAX_JSON_BYTES = 8 * 2**20
#: Arrays of the classifier and the normalization before it, which LBDT doesn't use, in torchvision's ResNet and
#: ConvNeXt, and in Hugging Face's ResNet, ConvNeXt and DINOv3's ConvNeXt.
CLASSIFIER = tuple(
    f"{module}.{kind}"
    for module in ("fc", "classifier.0", "classifier.2", "classifier.1", "classifier", "layernorm", "layer_norm")
    for kind in ("weight", "bias")
)
#: Names that only torchvision's ResNets and ConvNeXts have.
STEM_OF_RESNET, STEM_OF_CONVNEXT = "conv1.weight", "features.0.0.weight"
#: Parts of a block in Hugging Face's two ConvNeXts -> in torchvision's.
CONVNEXT_PARTS = {
    "dwconv": "block.0",
    "depthwise_conv": "block.0",
    "layernorm": "block.2",
    "layer_norm": "block.2",
    "pwconv1": "block.3",
    "pointwise_conv1": "block.3",
    "pwconv2": "block.5",
    "pointwise_conv2": "block.5",
    "layer_scale_parameter": "layer_scale",
    "gamma": "layer_scale",
}


def find_initial_weights(source: str | Path, model: ConfigDict) -> Path:
    """Where the weights are that `load_initial_weights` can load.

    Args:
      source: a path, or OWNER/NAME, a repository of the Hugging Face Hub.
      model: config.model; the message says what to download for it.

    Raises:
      UserError: there are none, or PyTorch, which reads such a file, is not installed.
    """
    path = resolve_best(locate_checkpoint(source, any_model=True))
    if not path.exists():
        raise UserError(_missing_message(path, model))
    if path.is_file() and path.suffix != ".safetensors":
        import_torch()
    return path


def load_initial_weights(
    variables: Mapping[str, Any], path: Path, config: ConfigDict, sentence_encoder: SentenceEncoder
) -> dict[str, Any]:
    """Replaces a model's random weights by those of a file or folder.

    Args:
      variables: {"params", "batch_stats"} of a model of any size.
      path: an image encoder like the model's, from which both streams start (LBDT paper, section 4.1; everything else
        keeps its random weights), see `load_image_encoder`. Or a complete LBDT: a released .ckpt, or a folder with a
        checkpoint of this code.
      config: of the new training.
      sentence_encoder: of the new training.

    Raises:
      UserError: the file is broken or of another model; the first ten arrays that do not fit are listed. Or a
        checkpoint was trained with other word vectors, another tokenizer or another setting that the arrays don't show.
      CheckpointError: the folder holds no valid checkpoint.
    """
    if path.is_dir() and (is_shared(path) or not (path / "model.safetensors").is_file()):
        checkpoint = load_checkpoint(path)
        loaded = _check_same_model(checkpoint.variables, variables, path)
        try:
            _check_same_inputs(checkpoint, config, sentence_encoder)
        except UserError as error:
            raise UserError(f"config.initial_weights, {path}: {error}") from error
        return loaded
    try:
        state = load_image_encoder(path) if path.is_dir() or path.suffix == ".safetensors" else read_torch(path)
        if STEM_OF_RESNET in state or STEM_OF_CONVNEXT in state:
            return _fill_both_streams(_without_classifier(state), variables)
        return _check_same_model(from_torch(state), variables, path)
    except UserError as error:
        raise UserError(f"config.initial_weights, {path}: {error}") from error


def load_image_encoder(path: str | Path) -> dict[str, np.ndarray]:
    """An ImageNet ResNet or ConvNeXt without its classifier: torchvision's name -> array.

    Args:
      path: torchvision's .pth, or a .safetensors file or local folder of a Hugging Face repository, such as
        microsoft/resnet-50, facebook/convnext-tiny-224 or facebook/dinov3-convnext-tiny-pretrain-lvd1689m. A
        config.json next to model.safetensors is read, too.

    Raises:
      UserError: the file is missing or broken, or of a network with the same names and shapes as ours that computes
        something else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix != ".safetensors":
        return _without_classifier(read_torch(path))
    if (settings := path.with_name("config.json")).exists():
        _check_settings(settings)
    state = {_torchvision_name(name): value for name, value in read_safetensors(path).items()}
    # torchvision stores these as (C, 1, 1).
    scales = {
        name: value[:, None, None] for name, value in state.items() if name.endswith("layer_scale") and value.ndim == 1
    }
    return _without_classifier(state | scales)


def _check_settings(path: Path) -> None:
    """Reads a config.json. Raises UserError if it is none, or says that the network computes something else."""
    try:
        settings = json.loads(read_limited(path, MAX_JSON_BYTES))
        stride_in_1x1 = settings.get("downsample_in_bottleneck", False)
        is_convnext, architecture = "convnext" in str(settings.get("model_type")), str(settings.get("architecture"))
        activation = settings.get("hidden_act", "gelu" if is_convnext else "relu")
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not the config.json of a Hugging Face repository: {error}") from error
    if stride_in_1x1:
        raise UserError(
            f"{path}: downsample_in_bottleneck is true; LBDT's ResNets have the stride in the 3x3 convolution. "
            "Choose a repository like microsoft/resnet-50."
        )
    if architecture.startswith(("resnetaa", "resnetblur")):  # timm's, with a ResNet's arrays
        raise UserError(
            f"{path}: architecture is {architecture!r:.100}, which smooths before its strides; LBDT's ResNets don't. "
            "Choose a repository like microsoft/resnet-50."
        )
    needed, example = ("gelu", "facebook/convnext-tiny-224") if is_convnext else ("relu", "microsoft/resnet-50")
    if activation != needed:
        raise UserError(
            f"{path}: hidden_act is {activation!r:.100}; the {'ConvNeXts' if is_convnext else 'ResNets'} of this code "
            f"have {needed!r}. Choose a repository like {example}."
        )


def _missing_message(path: Path, model: ConfigDict) -> str:
    """The message for a missing file or folder, with where to get it."""
    is_resnet = model.encoder == "resnet"
    encoder = f"resnet{model.resnet_depth}" if is_resnet else model.encoder
    if not path.suffix or model.stream_width != 64 or encoder not in DOWNLOADS:
        return (
            f"config.initial_weights: there is no {path}. Train that model first, or name the folder of another one "
            "with --config.initial_weights=DIR."
        )
    advice = "For the published recipe download" if is_resnet else "Download"
    return (
        f"config.initial_weights: there is no {path}. {advice} {DOWNLOADS[encoder]} and save it as {path}; or start "
        "from random weights with --config.initial_weights=''."
    )


def _count_blocks(stage: Mapping[str, Any]) -> int:
    return sum(name.startswith("blocks_") for name in stage)


def _is_convnext(stream: Mapping[str, Any]) -> bool:
    """Whether the parameters of a stream are those of a ConvNeXt."""
    return "stem_norm" in stream


def _without_classifier(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if name not in CLASSIFIER}


def _torchvision_name(name: str) -> str:
    """Torchvision's name of an array of Hugging Face's ResNet, ConvNeXt or DINOv3 ConvNeXt, with its head or not."""
    name = re.sub(r"^(resnet|convnext|model)\.", "", name)
    name = re.sub(r"^embedder\.embedder\.convolution", "conv1", name)
    name = re.sub(r"^embedder\.embedder\.normalization", "bn1", name)
    name = re.sub(r"^embeddings\.patch_embeddings", "features.0.0", name)
    name = re.sub(r"^embeddings\.layernorm", "features.0.1", name)
    stage = re.match(r"(?:encoder\.)?stages\.(\d+)\.(downsampling_layer|downsample_layers|layers)\.(\d+)\.(.+)", name)
    if not stage:
        return name
    index, number, inside = int(stage[1]), stage[3], stage[4]
    if stage[2] != "layers":
        return f"features.{2 * index}.{number}.{inside}"
    part, _, kind = inside.partition(".")
    if part in CONVNEXT_PARTS:
        return ".".join([f"features.{2 * index + 1}.{number}.{CONVNEXT_PARTS[part]}", *filter(None, [kind])])
    inside = inside.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    inside = re.sub(r"^layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}", inside)
    inside = re.sub(r"^layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}", inside)
    return f"layer{index + 1}.{number}.{inside}"


def _fill_both_streams(state: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with an encoder's weights in both streams. Raises UserError if it is of another kind or size."""
    flat = flatten_dict(dict(variables))
    for stream in ("spatial_stream", "temporal_stream"):
        rows = _stream_rows(stream, variables, STEM_OF_CONVNEXT in state)
        shapes = {row.key: row.torch_shape(flat[row.path].shape) if row.path else () for row in rows}
        check(state, shapes, [key for key in shapes if key.endswith(COUNTER)])
        flat |= {row.path: row.from_torch(state[row.key]) for row in rows if row.path}
    return unflatten_dict(flat)


def _stream_rows(stream: str, variables: Mapping[str, Any], convnext_given: bool) -> list[Entry]:
    """The conversion table of a stream. Raises UserError if the model's streams are of another kind."""
    params = variables["params"][stream]
    if convnext_given != _is_convnext(params):
        found, needed = ("ConvNeXt", "ResNet") if convnext_given else ("ResNet", "ConvNeXt")
        raise UserError(f"this is a {found}, but config.model.encoder is a {needed}.")
    if convnext_given:
        return list(convnext(stream, [_count_blocks(params[stage]) for stage in ("res2", "res3", "res4", "res5")]))
    depth, _ = architecture(variables)
    if depth is None:
        raise UserError("only LBDT with a ResNet of depth 18, 34, 50 or 101 can start from a ResNet's weights.")
    return list(resnet(stream, depth, "", ["layer1", "layer2", "layer3", "layer4"]))


def _check_same_model(loaded: Mapping[str, Any], variables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`loaded` as numpy arrays. Raises UserError if it has other paths or shapes than `variables`."""
    found, expected = (
        {"/".join(key): array.shape for key, array in flatten_dict(dict(tree)).items()} for tree in (loaded, variables)
    )
    wrong = [
        f"  {name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise UserError(
            "\n".join([f"config.initial_weights: {path} holds another model than config.model.", *first_ten(wrong)])
        )
    return jax.tree.map(np.asarray, dict(loaded))


def _check_same_inputs(checkpoint: Checkpoint, config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
    """Raises UserError if a network would read other words than its checkpoint, or compute something else from them."""
    trained = checkpoint.sentence_encoder
    if isinstance(trained, WordVectors) and isinstance(sentence_encoder, WordVectors):
        if trained.words and not set(trained.words) & set(sentence_encoder.words):
            sentence_encoder = load_word_vectors(config.word_vectors, trained.words)
        check_same_vectors(trained, sentence_encoder)
    elif isinstance(trained, TransformerTokenizer) and isinstance(sentence_encoder, TransformerTokenizer):
        if trained.text != sentence_encoder.text:
            raise UserError(f"it was trained with another tokenizer than that of {config.text_encoder}.")
    for field in FIELDS_WITHOUT_ARRAYS:
        trained_value, value = checkpoint.config.model[field], config.model[field]
        if trained_value != value:
            raise UserError(f"it was trained with config.model.{field}={trained_value}, not {value}.")
