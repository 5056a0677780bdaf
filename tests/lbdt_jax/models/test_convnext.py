"""ConvNeXt streams equal the network of transformers at every stage, with weights from each kind of file."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from safetensors.torch import save_file
from tiny import WORD_VECTOR_SIZE, tiny_batch, tiny_config

from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.convert.initial import load_image_encoder, load_initial_weights
from lbdt_jax.models.convnext import CONVNEXTS, ConvNeXt
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, shard_batch
from lbdt_jax.step import initial_state, initial_variables, make_model, make_train_step

WIDTH = 8  # an eighth of the published channels
DEPTHS = (1, 1, 2, 1)  # of "convnext_tiny" in these tests, for which more would prove no more
SIZES = {"hidden_sizes": [12, 24, 48, 96], "depths": [*DEPTHS]}
PUBLISHED = dict(CONVNEXTS)
WORDS = WordVectors((), np.zeros((0, WORD_VECTOR_SIZE), np.float32))
SOURCES = {
    "convnext": (transformers.ConvNextConfig, transformers.ConvNextForImageClassification),
    "dinov3_convnext": (transformers.DINOv3ConvNextConfig, transformers.DINOv3ConvNextModel),
}


@pytest.fixture(scope="module", autouse=True)
def few_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONVNEXTS, "convnext_tiny", (DEPTHS, 96))
        yield


@pytest.fixture(scope="module")
def convnext_config() -> Any:
    config = tiny_config()
    config.model.update(encoder="convnext_tiny", stream_width=WIDTH, dropout=0.0)
    config.learning_rate = 1e-3
    return config


@pytest.fixture(scope="module")
def variables(convnext_config: Any) -> dict[str, Any]:
    return jax.device_get(initial_variables(make_model(convnext_config), convnext_config, WORD_VECTOR_SIZE))


def random_network(kind: str) -> torch.nn.Module:
    """A network of transformers in float32, with weights that make every part of it count."""
    config_class, network_class = SOURCES[kind]
    network = network_class(config_class(**SIZES)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + 0.5 * (parameter.ndim == 1))
    return network


def save_repository(folder: Path, network: torch.nn.Module, kind: str, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(network.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_act": "gelu", **settings}))
    return folder


def features(module: ConvNeXt, x: jax.Array) -> tuple[jax.Array, ...]:
    """res2 to res5."""
    stages = module.stem_to_res4(x, False)
    return *stages, module.res5(stages[-1], False)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_stage_equals_the_reference(
    kind: str, convnext_config: Any, variables: dict[str, Any], tmp_path: Path, float64: None
) -> None:
    network = random_network(kind)
    repository = save_repository(tmp_path / kind, network, kind)
    torch.save(
        {name: torch.tensor(array) for name, array in load_image_encoder(repository).items()}, tmp_path / "a.pth"
    )
    loaded = load_initial_weights(variables, repository, convnext_config, WORDS)
    from_torchvision = load_initial_weights(variables, tmp_path / "a.pth", convnext_config, WORDS)
    jax.tree.map(np.testing.assert_array_equal, loaded, from_torchvision)
    for size in ((64, 96), (96, 64)):
        x = np.random.default_rng(0).standard_normal((2, *size, 3))
        with torch.no_grad():
            x_torch = torch.tensor(x.transpose(0, 3, 1, 2))
            expected = network.double()(x_torch, output_hidden_states=True).hidden_states[-4:]
        for stream in ("spatial_stream", "temporal_stream"):
            params = {"params": loaded["params"][stream]}
            for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
                apply = jax.jit(functools.partial(ConvNeXt("convnext_tiny", WIDTH, dtype=dtype).apply, method=features))
                for stage, reference in zip(apply(params, x), expected, strict=True):
                    np.testing.assert_allclose(
                        stage, reference.numpy().transpose(0, 2, 3, 1), rtol=0, atol=tolerance * np.abs(stage).max()
                    )


def test_published_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVNEXTS, "convnext_tiny", PUBLISHED["convnext_tiny"])
    # The numbers of parameters are those that torchvision states, less the last normalization and the classifier.
    for kind, classified, channels in (
        ("convnext_tiny", 28_589_128, 768),
        ("convnext_small", 50_223_688, 768),
        ("convnext_base", 88_591_464, 1024),
    ):
        shapes = jax.eval_shape(
            lambda kind=kind: ConvNeXt(kind).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), method=features)
        )
        count = sum(array.size for array in jax.tree.leaves(shapes))
        assert count == classified - 2 * channels - 1001 * channels + channels - 1000


def test_a_network_with_convnexts_learns(convnext_config: Any, variables: dict[str, Any]) -> None:
    mesh = make_mesh(jax.devices()[:1])
    model, optimizer = make_model(convnext_config), make_optimizer(convnext_config, 1000)
    state = replicate(initial_state(variables, optimizer), mesh)
    step = make_train_step(model, optimizer, convnext_config, mesh)
    batch = {name: tiny_batch(convnext_config)[name] for name in (*MODEL_FIELDS, "target")}
    losses = []
    for _ in range(6):
        state, metrics = step(state, shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), jax.device_get(state.params), variables["params"])
    still = ["/".join(path) for path, changed in flatten_dict(moved).items() if not changed]
    assert not still


def test_what_does_not_fit_is_told(convnext_config: Any, variables: dict[str, Any], tmp_path: Path) -> None:
    network = random_network("convnext")
    repository = save_repository(tmp_path / "relu", network, "convnext", hidden_act="relu")
    with pytest.raises(UserError, match="hidden_act is 'relu'"):
        load_initial_weights(variables, repository, convnext_config, WORDS)
    resnet = initial_variables(make_model(tiny_config()), tiny_config(), WORD_VECTOR_SIZE)
    repository = save_repository(tmp_path / "good", network, "convnext")
    with pytest.raises(UserError, match="this is a ConvNeXt, but config.model.encoder is a ResNet"):
        load_initial_weights(resnet, repository, convnext_config, WORDS)
    state = dict(network.state_dict())
    del state["convnext.encoder.stages.2.layers.1.layer_scale_parameter"]
    save_file(state, repository / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: \['features\.5\.1\.layer_scale'\]"):
        load_initial_weights(variables, repository, convnext_config, WORDS)
