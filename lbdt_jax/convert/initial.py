"""Initial weights for training: an ImageNet ResNet of torchvision or Hugging Face, or a complete LBDT."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.checkpoint_folder import resolve_best
from lbdt_jax.convert.files import first_ten, read_safetensors, read_torch
from lbdt_jax.convert.names import COUNTER, architecture, check, from_torch, resnet

#: ResNet depth -> torchvision's ImageNet weights, IMAGENET1K_V1 (https://pytorch.org/vision/stable/models/resnet.html)
DOWNLOADS = {
    18: "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    34: "https://download.pytorch.org/models/resnet34-b627a593.pth",
    50: "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    101: "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}
#: Of a config.json; that of microsoft/resnet-50 has 70 kB.
MAX_JSON_BYTES = 8 * 2**20
#: Arrays of the classifier, which LBDT doesn't use, as torchvision and Hugging Face name them.
CLASSIFIER = ("fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias")


def load_initial_weights(variables: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Replaces a model's random weights by those of a file or folder.

    Args:
      variables: {"params", "batch_stats"} of a model of any size.
      path: an ImageNet ResNet, from which both streams start (LBDT paper, section 4.1; everything else keeps its random
        weights): torchvision's .pth, a .safetensors file, or a local folder of a Hugging Face repository such as
        microsoft/resnet-50. Or a complete LBDT: a released .ckpt, or a folder with a checkpoint of this code.

    Raises:
      UserError: the file is missing, broken or of another model; all arrays that do not fit are listed.
      CheckpointError: the folder holds no valid checkpoint.
    """
    path = resolve_best(Path(path))
    depth, _ = architecture(variables)
    if not path.exists():
        raise UserError(_missing_message(path, depth))
    if path.is_dir() and not (path / "model.safetensors").is_file():
        return _check_same_model(load_checkpoint(path).variables, variables, path)
    try:
        state = load_resnet(path) if path.is_dir() or path.suffix == ".safetensors" else read_torch(path)
        if "conv1.weight" not in state:
            return _check_same_model(from_torch(state), variables, path)
        return _fill_both_streams(_without_classifier(state), variables, depth)
    except UserError as error:
        raise UserError(f"config.initial_weights, {path}: {error}") from error


def load_resnet(path: str | Path) -> dict[str, np.ndarray]:
    """An ImageNet ResNet without its classifier: torchvision's name -> array.

    Args:
      path: torchvision's .pth, or a .safetensors file or folder of a Hugging Face repository. A config.json next to
        model.safetensors is read, too.

    Raises:
      UserError: the file is missing or broken, or of a ResNet with the stride in the first 1x1 convolution: it has the
        same names and shapes as LBDT's, but computes something else.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix != ".safetensors":
        return _without_classifier(read_torch(path))
    settings = path.with_name("config.json")
    if settings.exists():
        try:
            stride_in_1x1 = json.loads(read_limited(settings, MAX_JSON_BYTES)).get("downsample_in_bottleneck", False)
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserError(f"{settings} is not the config.json of a Hugging Face repository: {error}") from error
        if stride_in_1x1:
            raise UserError(
                f"{settings}: downsample_in_bottleneck is true; LBDT's ResNets have the stride in the 3x3 convolution. "
                "Choose a repository like microsoft/resnet-50."
            )
    state = {_torchvision_name(name): value for name, value in read_safetensors(path).items()}
    return _without_classifier(state)


def _missing_message(path: Path, depth: int | None) -> str:
    """The message for a missing file or folder, with where to get it."""
    if not path.suffix or depth is None:
        return (
            f"config.initial_weights: there is no {path}. Train that model first, or name the folder of another one "
            "with --config.initial_weights=DIR."
        )
    return (
        f"config.initial_weights: there is no {path}. For the published recipe download {DOWNLOADS[depth]} and "
        f"save it as {path}; or start from random weights with --config.initial_weights=''."
    )


def _without_classifier(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in state.items() if name not in CLASSIFIER}


def _torchvision_name(name: str) -> str:
    """Torchvision's name of an array of Hugging Face's ResNetForImageClassification or ResNetModel."""
    name = name.removeprefix("resnet.")
    name = re.sub(r"^embedder\.embedder\.convolution", "conv1", name)
    name = re.sub(r"^embedder\.embedder\.normalization", "bn1", name)
    block = re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", name)
    if not block:
        return name
    inside = block[3]
    inside = inside.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
    inside = re.sub(r"^layer\.(\d)\.convolution", lambda match: f"conv{int(match[1]) + 1}", inside)
    inside = re.sub(r"^layer\.(\d)\.normalization", lambda match: f"bn{int(match[1]) + 1}", inside)
    return f"layer{int(block[1]) + 1}.{block[2]}.{inside}"


def _fill_both_streams(
    state: Mapping[str, np.ndarray], variables: Mapping[str, Any], depth: int | None
) -> dict[str, Any]:
    """The variables with a ResNet's weights in both streams. Raises UserError if the ResNet is of another size."""
    if depth is None:
        raise UserError("only LBDT with a ResNet of depth 18, 34, 50 or 101 can start from a ResNet's weights.")
    flat = flatten_dict(dict(variables))
    for stream in ("spatial_stream", "temporal_stream"):
        rows = list(resnet(stream, depth, "", ["layer1", "layer2", "layer3", "layer4"]))
        shapes = {row.key: row.torch_shape(flat[row.path].shape) if row.path else () for row in rows}
        check(state, shapes, [key for key in shapes if key.endswith(COUNTER)])
        flat |= {row.path: row.from_torch(state[row.key]) for row in rows if row.path}
    return unflatten_dict(flat)


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
