"""Weights to start from: ImageNet ResNets of torchvision or Hugging Face, or a whole LBDT, released or our own."""

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
from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.convert.files import read_safetensors, read_torch
from lbdt_jax.convert.names import COUNTER, check, describe, from_torch, resnet

#: ResNet depth -> torchvision's ImageNet weights, IMAGENET1K_V1 (https://pytorch.org/vision/stable/models/resnet.html)
DOWNLOADS = {
    18: "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    34: "https://download.pytorch.org/models/resnet34-b627a593.pth",
    50: "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    101: "https://download.pytorch.org/models/resnet101-63fe2227.pth",
}
#: Names of the classifier, which LBDT has no use for: torchvision's and Hugging Face's.
CLASSIFIER = ("fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias")


def initialise(variables: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Our variables with the weights of a file or folder in the place of the random ones.

    Args:
      variables: {"params", "batch_stats"} of a network of any size.
      path: an ImageNet ResNet, which both streams start from (LBDT paper, section 4.1; the rest stays as it is):
        torchvision's .pth, a .safetensors file, or a local folder of a Hugging Face repository such as
        microsoft/resnet-50. Or a whole LBDT: a released .ckpt or a folder with one of our checkpoints.

    Raises:
      UserError: the file is missing or broken or does not fit; every array in question is listed.
      CheckpointError: the folder holds no sound checkpoint.
    """
    path = Path(path)
    depth, _ = describe(variables)
    if not path.exists() and not path.suffix:
        raise UserError(
            f"config.initial_weights: there is no {path}. Train that model first, or name the folder of another one "
            "with --config.initial_weights=DIR."
        )
    if not path.exists():
        raise UserError(
            f"config.initial_weights: there is no {path}. For the published recipe download {DOWNLOADS[depth]} and "
            f"save it as {path}; or start from random weights with --config.initial_weights=''."
        )
    if path.is_dir() and not (path / "model.safetensors").is_file():
        return _fit(load_checkpoint(path).variables, variables, path)
    try:
        state = load_resnet(path) if path.is_dir() or path.suffix == ".safetensors" else read_torch(path)
        if "conv1.weight" not in state:
            return _fit(from_torch(state), variables, path)
        return _both_streams(_without_classifier(state), variables, depth)
    except UserError as error:
        raise UserError(f"config.initial_weights, {path}: {error}") from error


def load_resnet(path: str | Path) -> dict[str, np.ndarray]:
    """An ImageNet ResNet without its classifier: torchvision's name -> array.

    Args:
      path: torchvision's .pth, or a .safetensors file or folder of a Hugging Face repository. Beside its
        model.safetensors the config.json is read if it is there.

    Raises:
      UserError: the file is missing or broken, or a ResNet with the stride in the first 1x1 convolution, which has the
        same names and shapes and other results than LBDT's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if path.suffix != ".safetensors":
        return _without_classifier(read_torch(path))
    settings = path.with_name("config.json")
    if settings.is_file():
        try:
            refused = json.loads(settings.read_text()).get("downsample_in_bottleneck", False)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{settings} is not the config.json of a Hugging Face repository: {error}") from error
        if refused:
            raise UserError(
                f"{settings}: downsample_in_bottleneck is true; LBDT's ResNets have the stride in the 3x3 convolution. "
                "Choose a repository like microsoft/resnet-50."
            )
    state = {_torchvision_name(name): value for name, value in read_safetensors(path).items()}
    return _without_classifier(state)


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
    inside = re.sub(r"^layer\.(\d)\.convolution", lambda found: f"conv{int(found[1]) + 1}", inside)
    inside = re.sub(r"^layer\.(\d)\.normalization", lambda found: f"bn{int(found[1]) + 1}", inside)
    return f"layer{int(block[1]) + 1}.{block[2]}.{inside}"


def _both_streams(state: Mapping[str, np.ndarray], variables: Mapping[str, Any], depth: int) -> dict[str, Any]:
    flat = flatten_dict(dict(variables))
    for stream in ("spatial_stream", "temporal_stream"):
        rows = list(resnet(stream, depth, "", ["layer1", "layer2", "layer3", "layer4"]))
        shapes = {row.key: row.torch_shape(flat[row.path].shape) if row.path else () for row in rows}
        check(state, shapes, [key for key in shapes if key.endswith(COUNTER)])
        flat |= {row.path: row.from_torch(state[row.key]) for row in rows if row.path}
    return unflatten_dict(flat)


def _fit(found: Mapping[str, Any], variables: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`found`, if it has the paths and shapes of `variables`."""
    have, want = (
        {"/".join(key): array.shape for key, array in flatten_dict(dict(tree)).items()} for tree in (found, variables)
    )
    wrong = [
        f"  {name}: expected {want.get(name, 'nothing')}, found {have.get(name, 'nothing')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if wrong:
        raise UserError("\n".join([f"config.initial_weights: {path} holds another network than config.model.", *wrong]))
    return jax.tree.map(np.asarray, dict(found))
