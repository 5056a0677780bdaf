"""Loss, gradients, AdamW and batch statistics equal the published ones (tests/golden/train_*.npz, units.npz)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import GOLDEN
from published import encode_and_segment, published_inputs, published_model
from tiny import tiny_batch, tiny_config

from configs import a2d, shapes
from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.images import resize_frame, resize_target
from input_pipeline.moving_shapes.scenes import make_scene
from input_pipeline.moving_shapes.shapes import ANNOTATED_FRAMES
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import losses
from lbdt_jax.convert.names import to_torch
from lbdt_jax.models.attention import MultiHeadAttention
from lbdt_jax.models.layers import BatchNorm, Dropout, LayerNorm
from lbdt_jax.models.positions import pixel_positions, word_positions
from lbdt_jax.models.resize import aligned_bilinear, upsample_and_sum
from lbdt_jax.models.text_encoder import LSTMTextEncoder
from lbdt_jax.optimizer import learning_rate_schedule, make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, shard_batch
from lbdt_jax.step import (
    compute_metrics,
    evaluated_variables,
    initial_state,
    initial_variables,
    is_frozen,
    make_model,
    make_train_step,
)

UNITS = np.load(GOLDEN / "units.npz")


def close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=tolerance, atol=tolerance)


# -- three steps of the whole network


def run_three_steps(variant: str, case: str, dtype: str) -> dict[str, Any]:
    """Runs three AdamW steps on one batch without dropout. Returns what the golden files hold, in PyTorch's layout."""
    model, variables = published_model(variant, dtype, dropout=0.0)
    inputs = published_inputs(case, dtype)
    config = a2d.get_config()
    optimizer = make_optimizer(config, steps_per_epoch=1000)

    def loss_function(params: Any, batch_stats: Any) -> Any:
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            method=encode_and_segment,
            mutable=["batch_stats"],
        )
        metrics = compute_metrics(logits, jnp.asarray(inputs["target"]), config)
        return metrics["loss"], (changed["batch_stats"], metrics, logits)

    @jax.jit
    def step(params: Any, batch_stats: Any, optimizer_state: Any) -> Any:
        gradients, (batch_stats, metrics, logits) = jax.grad(loss_function, has_aux=True)(params, batch_stats)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), batch_stats, optimizer_state, gradients, metrics, logits

    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer_state = optimizer.init(params)
    steps = []
    for index in range(3):
        params, batch_stats, optimizer_state, gradients, metrics, logits = step(params, batch_stats, optimizer_state)
        steps.append({"metrics": metrics})
        # Only what the golden files hold: a copy of everything takes a gigabyte.
        if index == 0:
            steps[0]["logits"] = np.asarray(logits).reshape(-1)
            steps[0]["gradients"] = to_torch({"params": gradients, "batch_stats": batch_stats})
        del gradients
        if index != 1:
            steps[index]["state"] = to_torch({"params": params, "batch_stats": batch_stats})
    return {"start": to_torch(variables), "steps": steps}


def at(state: dict[str, np.ndarray], names: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The named arrays at their flat indices (names, count), as an array of that shape."""
    return np.stack([np.asarray(state[name]).reshape(-1)[i] for name, i in zip(names, indices, strict=True)])


@pytest.mark.parametrize(
    ("variant", "case"),
    [
        ("lbdt1_r50", "train_small"),
        pytest.param("lbdt4_r50", "train_small", marks=pytest.mark.slow),
        pytest.param("lbdt1_r50", "train", marks=pytest.mark.slow),
        pytest.param("lbdt4_r50", "train", marks=pytest.mark.slow),
    ],
)
def test_three_steps_equal_published_in_float64(variant: str, case: str, float64: None) -> None:
    golden = np.load(GOLDEN / f"train_{variant}_{case}.npz")
    run = run_three_steps(variant, case, "float64")
    start, steps = run["start"], run["steps"]
    for name in ("loss", "bce", "dice"):
        close([step["metrics"][name] for step in steps], golden[f"step:{name}"])
    close(steps[0]["logits"][golden["logits:idx"]], golden["logits:val"], 2e-6)

    names = golden["names"]
    assert set(names) == {name for name in start if not name.endswith(("running_mean", "running_var"))}
    gradients = steps[0]["gradients"]
    norms = np.array([np.linalg.norm(gradients[name]) for name in names])
    # Two biases of each transfer have a gradient of zero except for rounding.
    nonzero = golden["grad:norm"] > 1e-10
    np.testing.assert_allclose(norms[nonzero], golden["grad:norm"][nonzero], rtol=1e-8)
    rms = norms / np.sqrt([gradients[name].size for name in names])
    errors = np.abs(at(gradients, names, golden["grad:idx"]) - golden["grad:val"]) / rms[:, None]
    assert errors[nonzero].max() < 1e-7

    before = at(start, names, golden["param:idx"])
    for step, delta in ((0, "param:delta1"), (2, "param:delta3")):
        change = at(steps[step]["state"], names, golden["param:idx"]) - before
        # Where the gradient is rounding, so is the direction of AdamW's update.
        np.testing.assert_allclose(change[nonzero], golden[delta][nonzero], rtol=0, atol=1e-9)
    used = np.isin(golden["bn:names"], list(start))  # the published code also has unused towers
    bn_names, bn_indices = golden["bn:names"][used], golden["bn:idx"][used]
    for step, values in ((0, "bn:val1"), (2, "bn:val3")):
        state = steps[step]["state"]
        statistics_rms = np.array([np.sqrt(np.mean(state[name] ** 2)) for name in bn_names])
        errors = np.abs(at(state, bn_names, bn_indices) - golden[values][used])
        assert (errors / statistics_rms[:, None]).max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", ["train_small", "train"])
def test_three_steps_equal_published_in_float32(case: str) -> None:
    golden = np.load(GOLDEN / f"train_lbdt1_r50_{case}.npz")
    run = run_three_steps("lbdt1_r50", case, "float32")
    start, steps = run["start"], run["steps"]
    for step, tolerance in zip(range(3), (2e-5, 1e-2, 5e-2), strict=True):
        assert abs(float(steps[step]["metrics"]["loss"]) - golden["step:loss"][step]) < tolerance
    assert np.abs(steps[0]["logits"][golden["logits:idx"]] - golden["logits:val"]).max() < 5e-3
    names = golden["names"]
    nonzero = golden["grad:norm"] > 1e-10
    gradients = steps[0]["gradients"]
    norms = np.array([np.linalg.norm(gradients[name]) for name in names])
    np.testing.assert_allclose(norms[nonzero], golden["grad:norm"][nonzero], rtol=8e-2)
    rms = golden["grad:norm"] / np.sqrt([gradients[name].size for name in names])
    errors = (
        np.abs(at(gradients, names, golden["grad:idx"]) - golden["grad:val"])[nonzero] / rms[nonzero, None]
    ).reshape(-1)
    assert errors.max() < 0.5
    assert np.mean(errors < 0.1) > 0.99
    change = at(steps[0]["state"], names, golden["param:idx"]) - at(start, names, golden["param:idx"])
    clear = nonzero[:, None] & (np.abs(golden["param:delta1"]) > 9e-5)
    assert np.abs(change - golden["param:delta1"])[clear].max() < 1e-6


# -- learning


@pytest.mark.slow
def test_overfits_eight_samples() -> None:
    config = shapes.get_config()
    config.batch_size, config.sentences_per_frame = 8, 1
    samples = []
    annotated = ANNOTATED_FRAMES[0]
    for index in range(4):
        scene = make_scene(0, "train", index)
        frame, earlier = (resize_frame(scene.frames[i - 1], (64, 64)) for i in (annotated, annotated - 6))
        of_instance = {sentence.instance: sentence for sentence in scene.sentences}
        for instance, sentence in itertools.islice(of_instance.items(), 2):
            words = load_word_vectors("random:50", sentence.text.split()).encode(sentence.text, config.max_words)
            samples.append((frame, earlier, *words, resize_target(scene.masks[annotated][instance], (64, 64))))
    batch = dict(zip((*MODEL_FIELDS, "target"), map(np.stack, zip(*samples, strict=True)), strict=True))

    assert len(batch["target"]) == config.batch_size
    mesh = make_mesh(jax.devices()[:1])
    model, optimizer = make_model(config), make_optimizer(config, steps_per_epoch=10_000)
    state = replicate(initial_state(initial_variables(model, config, 50), optimizer), mesh)
    step = make_train_step(model, optimizer, config, mesh)
    losses_by_step = []
    for _ in range(400):
        state, metrics = step(state, shard_batch(batch, mesh))
        losses_by_step.append(float(metrics["loss"]))
    assert losses_by_step[-1] < 0.1 * losses_by_step[0]
    logits = model.apply(state.variables, *(batch[name] for name in MODEL_FIELDS))
    prediction, target = np.asarray(logits) > 0, batch["target"] > 0
    iou = (prediction & target).sum((1, 2)) / (prediction | target).sum((1, 2))
    assert iou.mean() > 0.95, iou


# -- single parts


@pytest.mark.parametrize("case", ["batch", "empty_target", "full_target", "single"])
def test_losses(case: str, float64: None) -> None:
    expected = json.loads((GOLDEN / "units.json").read_text())[f"loss/{case}"]
    logits, target = (jnp.asarray(UNITS[f"loss/{case}/{name}"], jnp.float64) for name in ("logits", "target"))
    config = a2d.get_config()
    metrics = compute_metrics(logits, target, config)
    for name in ("bce", "dice", "loss"):
        close(metrics[name], expected[name])
    predicted, true = np.asarray(logits) > 0, np.asarray(target) > 0
    intersection, union = (pixels.sum(axis=(1, 2)) for pixels in (predicted & true, predicted | true))
    close(metrics["iou"], np.mean((intersection + 1e-6) / (union + 1e-6)))
    close(jax.grad(lambda x: compute_metrics(x, target, config)["loss"])(logits), UNITS[f"loss/{case}/grad"])
    close(jax.grad(lambda x: losses.dice(x, target))(logits), UNITS[f"loss/{case}/grad_dice"])


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_aligned_bilinear(factor: int, float64: None) -> None:
    x = jnp.asarray(UNITS[f"upsample/{factor}/in"].transpose(0, 2, 3, 1))
    close(aligned_bilinear(x, factor).transpose(0, 3, 1, 2), UNITS[f"upsample/{factor}/out"])
    assert aligned_bilinear(x, 1) is x
    close(upsample_and_sum([(x, factor)]).transpose(0, 3, 1, 2), UNITS[f"upsample/{factor}/out"])


def test_upsample_and_sum(float64: None) -> None:
    large, small = (np.random.default_rng(0).standard_normal((2, *size, 5)) for size in ((6, 4), (3, 2)))
    one_by_one = aligned_bilinear(large, 4) + aligned_bilinear(small, 8)
    close(upsample_and_sum([(large, 4), (small, 8)]), np.asarray(one_by_one))


def test_positions() -> None:
    close(word_positions(25, 512), UNITS["position/text_f64"])
    close(pixel_positions(3, 5, 512).reshape(3, 5, 512).transpose(2, 0, 1), UNITS["position/image_f64"])


def test_adamw(float64: None) -> None:
    optimizer = make_optimizer(a2d.get_config(), steps_per_epoch=1000)
    params = jnp.asarray(UNITS["adamw/start"])
    state = optimizer.init(params)
    for gradient, expected in zip(UNITS["adamw/grads"], UNITS["adamw/params"], strict=True):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, expected, rtol=0, atol=1e-12)


def test_muon(float64: None) -> None:
    """The first step keeps a gradient's singular vectors and makes its singular values about equal."""
    config = shapes.get_config("muon")
    config.update(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    with pytest.raises(ValueError, match=r"shapes.py:sgd is unknown; choose shapes.py:muon or shapes.py:adamw\."):
        shapes.get_config("sgd")
    rng = np.random.default_rng(0)
    params, gradients = (
        {
            "conv": {"kernel": rng.standard_normal((3, 3, 4, 8)), "bias": rng.standard_normal(8)},
            "dense": {"kernel": rng.standard_normal((8, 5))},
            "dense_like_conv": {"kernel": rng.standard_normal((36, 8))},
            "words": {"embedding": rng.standard_normal((9, 4))},
            "depthwise": {"kernel": rng.standard_normal((3, 3, 1, 8))},
        }
        for _ in range(2)
    )
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)

    for module in ("conv", "dense", "dense_like_conv"):
        kernel, gradient = (np.asarray(x[module]["kernel"]) for x in (params, gradients))
        step = np.asarray(updates[module]["kernel"]) / -0.1 - 0.5 * kernel
        inputs, outputs = kernel.size // kernel.shape[-1], kernel.shape[-1]
        left, _, right = np.linalg.svd(gradient.reshape(inputs, outputs), full_matrices=False)
        singular_values = left.T @ step.reshape(inputs, outputs) @ right.T / (0.2 * np.sqrt(max(inputs, outputs)))
        diagonal = np.diag(singular_values)
        close(singular_values, np.diag(diagonal), 1e-10)
        assert (0.65 < diagonal).all() and (diagonal < 1.25).all()

    adamw = optax.adamw(0.1, weight_decay=0.5, nesterov=True)
    expected, _ = adamw.update(gradients, adamw.init(params), params)
    close(updates["conv"]["bias"], expected["conv"]["bias"], 1e-12)
    close(updates["words"]["embedding"], expected["words"]["embedding"], 1e-12)
    close(updates["depthwise"]["kernel"], expected["depthwise"]["kernel"], 1e-12)


def test_learning_rate_by_epoch() -> None:
    expected = json.loads((GOLDEN / "units.json").read_text())["learning_rate_by_epoch"]
    schedule = learning_rate_schedule(a2d.get_config(), steps_per_epoch=7)
    for epoch, rate in enumerate(expected):
        close([schedule(7 * epoch), schedule(7 * epoch + 6)], [rate, rate], 1e-6)


def test_warm_up_is_linear_and_ends() -> None:
    config = a2d.get_config()
    config.warmup_steps = 4
    schedule = learning_rate_schedule(config, steps_per_epoch=7)
    close([schedule(step) for step in range(6)], np.array([0.25, 0.5, 0.75, 1, 1, 1]) * 1e-4, 1e-6)


# -- options beyond the published recipe


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_cosine_schedule(warmup_steps: int) -> None:
    config = a2d.get_config()
    config.update(learning_rate_schedule="cosine", epochs=3.0, warmup_steps=warmup_steps)
    schedule = learning_rate_schedule(config, steps_per_epoch=8)
    steps = np.arange(24 + 2)
    progress = np.clip((steps - warmup_steps) / (24 - warmup_steps), 0, 1)
    expected = 1e-4 * (1 + np.cos(np.pi * progress)) / 2
    expected *= np.minimum(1, (steps + 1) / warmup_steps) if warmup_steps else 1
    np.testing.assert_allclose([schedule(step) for step in steps], expected, rtol=0, atol=1e-10)
    assert schedule(24) == schedule(25) == 0 < schedule(23)  # the last step still learns


@pytest.mark.parametrize("limit", [0.0, 1e-3, 1.0, 1e6])
def test_clipping_by_the_norm_of_all_gradients(limit: float, float64: None) -> None:
    config = a2d.get_config()
    config.update(clip_gradient_norm=limit)
    gradients = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}  # of norm 5
    params = jax.tree.map(jnp.ones_like, gradients)
    scale = min(1, limit / 5) if limit else 1
    clipped, state = make_optimizer(config, 10).update(gradients, make_optimizer(config, 10).init(params), params)
    adamw = make_optimizer(a2d.get_config(), 10)
    scaled = jax.tree.map(lambda x: scale * x, gradients)
    expected, expected_state = adamw.update(scaled, adamw.init(params), params)
    jax.tree.map(lambda x, y: close(x, y, 1e-12), clipped, expected)
    if not limit:  # nothing is added to what is saved
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_streams_learn_at_a_rate_of_their_own(factor: float, float64: None) -> None:
    config = a2d.get_config()
    config.encoder_learning_rate_factor = factor
    params = {name: {"kernel": jnp.ones(3)} for name in ("spatial_stream", "temporal_stream", "head")}
    gradients = jax.tree.map(lambda x: 2 * x, params)
    optimizer, adamw = make_optimizer(config, 10), make_optimizer(a2d.get_config(), 10)
    updates, state = optimizer.update(gradients, optimizer.init(params), params)
    expected, expected_state = adamw.update(gradients, adamw.init(params), params)
    for name, update in updates.items():
        share = 1 if name == "head" else factor
        close(update["kernel"], share * expected[name]["kernel"], 1e-12)
    if factor == 1:  # nothing is added to what is saved
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 0.5), (0.0, 5.0)])
def test_focal_loss(alpha: float, gamma: float, float64: None) -> None:
    rng = np.random.default_rng(0)
    logits, target = 5 * rng.standard_normal((2, 3, 4)), rng.integers(0, 2, (2, 3, 4)).astype(float)
    p = 1 / (1 + np.exp(-logits))
    p_t, alpha_t = np.where(target, p, 1 - p), np.where(target, alpha, 1 - alpha)
    expected = np.mean(-alpha_t * (1 - p_t) ** gamma * np.log(p_t))
    close(losses.focal(jnp.asarray(logits), jnp.asarray(target), alpha, gamma), expected)

    config = a2d.get_config()
    published = compute_metrics(jnp.asarray(logits), jnp.asarray(target), config)
    config.update(focal_weight=3.0, focal_alpha=alpha, focal_gamma=gamma)
    metrics = compute_metrics(jnp.asarray(logits), jnp.asarray(target), config)
    close(metrics["loss"], published["loss"] + 3 * expected)
    assert metrics.keys() - published.keys() == {"focal"}
    extreme = jnp.asarray([[[1e4, -1e4, 1e4, -1e4, 0.0]]])
    gradient = jax.grad(lambda x: losses.focal(x, jnp.asarray([[[1.0, 0, 0, 1, 1]]]), alpha, gamma))(extreme)
    assert np.isfinite(gradient).all()


class OneWeight:
    """Stands for a model: one weight, one statistic."""

    def apply(self, variables: Any, frame: Any, *inputs: Any, **settings: Any) -> Any:
        logits = variables["params"]["weight"] * (frame[..., 0] - 100.0) / 100
        return logits, {"batch_stats": {"mean": 0.9 * variables["batch_stats"]["mean"] + jnp.mean(logits)}}


def test_moving_average_of_the_weights() -> None:
    config = tiny_config()
    config.update(ema_decay=0.5, learning_rate=0.1, image_size=(32, 32))
    mesh, optimizer = make_mesh(jax.devices()[:2]), make_optimizer(config, 1000)
    variables = {"params": {"weight": np.full(1, 2.0, np.float32)}, "batch_stats": {"mean": np.zeros((), "f4")}}
    state = replicate(initial_state(variables, optimizer, ema=True), mesh)
    step, batch = make_train_step(OneWeight(), optimizer, config, mesh), shard_batch(tiny_batch(config), mesh)
    expected, averages = variables, []
    for count in range(1, 12):
        state, _ = step(state, batch)
        decay = min(0.5, (1 + count) / (10 + count))  # 0.5 from the eighth step on
        new = jax.device_get(state.variables)
        expected = jax.tree.map(lambda average, x, d=decay: d * average + (1 - d) * x, expected, new)
        jax.tree.map(lambda x, y: close(x, y, 1e-5), state.ema, expected)
        averages.append(float(state.ema["params"]["weight"][0]))
    assert len({*averages}) == 11 and averages[-1] != new["params"]["weight"][0]
    for weights, chosen in (("", state.ema), ("ema", state.ema), ("trained", new)):
        config.evaluated_weights = weights
        jax.tree.map(np.testing.assert_array_equal, evaluated_variables(state, config), chosen)

    config.ema_decay = 0.0
    state = replicate(initial_state(variables, optimizer), mesh)
    state, _ = make_train_step(OneWeight(), optimizer, config, mesh)(state, batch)
    assert state.ema == {} and evaluated_variables(state, config) == state.variables


def test_a_frozen_transformer_is_not_averaged() -> None:
    config = tiny_config()
    config.model.transformer = {"layers": 1}
    frozen = {"transformer": {"kernel": np.ones(2, np.float32)}, "kernel": np.zeros(3, np.float32)}
    params = {"text_encoder": frozen, "head": {"bias": np.zeros(1, np.float32)}}
    state = initial_state({"params": params, "batch_stats": {}}, optax.identity(), is_frozen(config), ema=True)
    assert state.ema["params"]["text_encoder"].keys() == {"kernel"}
    assert jax.tree.structure(evaluated_variables(state, config)) == jax.tree.structure(state.variables)


# -- layers


@pytest.mark.parametrize("name", ["batchnorm", "batchnorm_small_variance"])
def test_batch_norm(name: str, float64: None) -> None:
    x = jnp.asarray(UNITS[f"{name}/in"].transpose(0, 2, 3, 1))
    params = {"scale": UNITS[f"{name}/weight"], "bias": UNITS[f"{name}/bias"]}
    if name == "batchnorm":
        start = {"mean": np.zeros(4), "variance": np.ones(4)}
        out, changed = BatchNorm().apply({"params": params, "batch_stats": start}, x, True, mutable=["batch_stats"])
        close(out.transpose(0, 3, 1, 2), UNITS["batchnorm/out_train"])
        close(changed["batch_stats"]["mean"], UNITS["batchnorm/running_mean"])
        close(changed["batch_stats"]["variance"], UNITS["batchnorm/running_var"])
    running = {"mean": UNITS[f"{name}/running_mean"], "variance": UNITS[f"{name}/running_var"]}
    out = BatchNorm().apply({"params": params, "batch_stats": running}, x, False)
    close(out.transpose(0, 3, 1, 2), UNITS["batchnorm/out_eval" if name == "batchnorm" else f"{name}/out"])


def test_layer_norm(float64: None) -> None:
    params = {"scale": UNITS["layernorm/weight"], "bias": UNITS["layernorm/bias"]}
    norm = LayerNorm(1e-5, "float64")
    close(norm.apply({"params": params}, jnp.asarray(UNITS["layernorm/in"])), UNITS["layernorm/out"])


def test_dropout_keeps_the_expected_value() -> None:
    x = jnp.arange(1.0, 10_001.0)
    y = np.asarray(Dropout(0.25).apply({}, x, False, rngs={"dropout": jax.random.key(0)}))
    kept = y != 0
    np.testing.assert_allclose(y[kept], np.asarray(x)[kept] / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 0.02  # five standard deviations


def test_lstm(float64: None) -> None:
    params = {
        "input_kernel": UNITS["lstm/weight_ih_l0"].T,
        "hidden_kernel": UNITS["lstm/weight_hh_l0"].T,
        "input_bias": UNITS["lstm/bias_ih_l0"],
        "hidden_bias": UNITS["lstm/bias_hh_l0"],
    }
    features, sentence = LSTMTextEncoder(4, "float64").apply({"params": params}, jnp.asarray(UNITS["lstm/in"]))
    close(features, UNITS["lstm/out"])
    close(sentence, UNITS["lstm/out"].sum(axis=1))


def test_attention(float64: None) -> None:
    packed = zip(
        ("query", "key", "value"),
        np.split(UNITS["attention/in_proj_weight"], 3),
        np.split(UNITS["attention/in_proj_bias"], 3),
        strict=True,
    )
    params = {name: {"kernel": kernel.T, "bias": bias} for name, kernel, bias in packed}
    params["out"] = {"kernel": UNITS["attention/out_proj.weight"].T, "bias": UNITS["attention/out_proj.bias"]}
    query, key, value = (jnp.asarray(UNITS[f"attention/{n}"].transpose(1, 0, 2)) for n in ("query", "key", "value"))
    mask = jnp.asarray(~UNITS["attention/key_padding_mask"])
    module = MultiHeadAttention(8, 2, 0.0, "float64")
    out, kept = module.apply({"params": params}, query, key, value, mask, False, mutable=["attention"])
    close(out.transpose(1, 0, 2), UNITS["attention/out"])
    close(kept["attention"]["weights"][0], UNITS["attention/weights"])
