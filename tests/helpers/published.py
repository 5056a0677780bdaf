"""Weights, inputs and intermediate values of the published network."""

from __future__ import annotations

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inputs_rule import make_inputs
from paths import GOLDEN
from weights_rule import make_state

from lbdt_jax.convert.names import from_torch, torch_architecture
from lbdt_jax.inference.explain import collect
from lbdt_jax.models.lbdt import LBDT


@functools.cache
def torch_state(variant: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The state dict of a variant such as "lbdt4_r50"."""
    return make_state(json.loads((GOLDEN / f"manifest_{variant}.json").read_text()), seed)


def published_model(variant: str, dtype: str, **options: Any) -> tuple[LBDT, dict[str, Any]]:
    """The network of a variant and its variables, both in `dtype`."""
    state = torch_state(variant)
    depth, layers = torch_architecture(state)
    variables = jax.tree.map(lambda x: np.asarray(x, dtype), from_torch(state))
    return LBDT(resnet_depth=depth, transfer_layers=layers, dtype=dtype, **options), variables


@functools.cache
def published_inputs(case: str, dtype: str) -> dict[str, np.ndarray]:
    """Returns the inputs of a case of the golden files.

    Returns:
      frame, motion: (B, H, W, 3), the normalized frame and frame difference.
      words: (B, N, 300).
      word_mask: (B, N) bool.
      image_mask: (B, H/32 * W/32) bool.
      target: (B, H, W) float32.
    """
    inputs = make_inputs(json.loads((GOLDEN / "cases.json").read_text())["open"][case])
    return {
        "frame": inputs["image"].transpose(0, 2, 3, 1).astype(dtype),
        "motion": inputs["flow"].transpose(0, 2, 3, 1).astype(dtype),
        "words": inputs["phrase"].astype(dtype),
        "word_mask": inputs["phrase_mask"] > 0,
        "image_mask": inputs["img_mask"] > 0,
        "target": inputs["target"],
    }


def encode_and_segment(model: LBDT, inputs: dict[str, Any], train: bool = False) -> jax.Array:
    """The forward pass from normalized frames: `encode`, then `segment`."""
    features = model.encode_normalized(inputs["frame"], inputs["motion"], train)
    return model.segment(features, inputs["words"], inputs["word_mask"], inputs["image_mask"], train)


def intermediate_values(model: LBDT, variables: dict[str, Any], inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns every activation of the golden files, by its name there and in PyTorch's layout."""
    inputs = {name: value for name, value in inputs.items() if name != "target"}

    @jax.jit
    def forward(variables: dict[str, Any], inputs: dict[str, Any]) -> Any:
        return model.apply(
            variables,
            inputs,
            method=encode_and_segment,
            capture_intermediates=True,
            mutable=["intermediates", "attention"],
        )

    logits, collections = forward(variables, inputs)
    intermediates = collections["intermediates"]

    def output(*path: str) -> Any:
        return functools.reduce(lambda tree, name: tree[name], path, intermediates)["__call__"][0]

    height, width = inputs["frame"].shape[1:3]
    activations = {"logits": logits, "logits_quarter": output("head", "project")}
    activations["text/features"], activations["text/sent"] = output("text_encoder")
    for short, name in (("spa", "spatial"), ("tem", "temporal")):
        activations[f"{short}/stem"] = intermediates[f"{name}_stream"]["pooled"][0]
        for stage in (2, 3, 4, 5):
            key = f"r{stage}_before" if stage > 3 else f"r{stage}"
            activations[f"{short}/{key}"] = output(f"{name}_stream", f"res{stage}")
            activations[f"decoder/refine_{short}{stage - 2}"] = output(f"{name}_decoder", f"res{stage}_branch")
        activations[f"decoder/pyramid_{short}"] = output(f"{name}_decoder")
    for stage, stride in ((4, 16), (5, 32)):
        transfer = f"duplex_transfer{stage}"
        activations[f"spa/r{stage}"], activations[f"tem/r{stage}"] = output(transfer)
        for direction, (short, name) in enumerate((("spa", "spatial"), ("tem", "temporal"))):
            activations[f"{short}/r{stage}_reduce"] = output(transfer, f"{name}_reduce")
            activations[f"{short}/r{stage}_up"] = output(transfer, f"{name}_expand")

            def pixels(tokens: jax.Array, stride: int = stride) -> jax.Array:
                return tokens.reshape(tokens.shape[0], height // stride, width // stride, -1)

            for layer in range(model.transfer_layers):
                bridge, key = f"bridges_{layer}", f"stage{stage}/layer{layer}/to_{short}"
                words = output(transfer, bridge, "words_norm")
                activations[f"{key}/words_1"] = words[min(direction, len(words) - 1)]
                activations[f"{key}/words_2"] = output(transfer, bridge, "source_norm")[direction]
                activations[f"{key}/attended"] = pixels(output(transfer, bridge, "target_norm")[direction])
                activations[f"{key}/output"] = pixels(output(transfer, bridge, "feed_forward_norm")[direction])
            activations[f"{short}/r{stage}_transfer"] = activations[
                f"stage{stage}/layer{model.transfer_layers - 1}/to_{short}/output"
            ]
    # The attention maps that `explain` returns; the golden files hold those of the last layer.
    explanations = [collect(logits, collections, sample) for sample in range(len(logits))]
    for bridges in zip(*(explanation.bridges for explanation in explanations), strict=True):
        if bridges[0].layer == model.transfer_layers:
            key = f"attention/stage{bridges[0].stage}/to_{bridges[0].target[:3]}"
            activations[f"{key}/self"] = np.stack([bridge.words_to_words for bridge in bridges])
            cross = np.stack([bridge.target_from_words for bridge in bridges])
            activations[f"{key}/cross"] = cross.reshape(len(logits), -1, cross.shape[-1])
    activation = "bilateral_channel_activation"
    activations["decoder/img_flo_fc"] = jnp.maximum(output(activation, "joint"), 0)
    for short, name in (("img", "spatial"), ("flo", "temporal")):
        activations[f"decoder/{short}_txt_fc"] = output(activation, f"{name}_language")
        activations[f"decoder/{short}_enhance_fc"] = output(activation, f"{name}_enhance")
    activations["decoder/fusion"] = output(activation)
    for index in range(4):
        activations[f"decoder/tower{index}"] = output("head", f"tower_{index}")
    return {name: to_torch_layout(np.asarray(value)) for name, value in activations.items()}


def to_torch_layout(value: np.ndarray) -> np.ndarray:
    """(B, H, W, C) -> (B, C, H, W). Arrays of other ranks have the same layout in JAX and PyTorch."""
    return value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
