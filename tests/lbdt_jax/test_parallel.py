"""The training step on several devices equals the step on one (lbdt_jax/parallel.py, lbdt_jax/step.py)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from tiny import STEPS_PER_EPOCH, tiny_batch, tiny_config, tiny_state

from input_pipeline.batch import Batch
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import DATA_AXIS, make_mesh, replicate, shard_batch
from lbdt_jax.step import Metrics, TrainState, loss_function, make_model, make_train_step

pytestmark = pytest.mark.usefixtures("fast_compilation")


def make_config(**fields: Any) -> ConfigDict:
    """tiny_config with small images, without dropout and in float64; `fields` override it, by their full names."""
    config = tiny_config()
    config.image_size = (32, 32)
    config.update_from_flattened_dict({"model.dtype": "float64", "model.dropout": 0.0} | fields)
    return config


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@functools.cache
def compiled_step(devices: int, **fields: Any) -> Step:
    """The training step on the first few devices; takes and returns arrays on the host."""
    config, mesh = make_config(**fields), make_mesh(jax.devices()[:devices])
    train_step = make_train_step(make_model(config), make_optimizer(config, STEPS_PER_EPOCH), config, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return jax.device_get(train_step(replicate(state, mesh), shard_batch(batch, mesh)))

    step.compilations = train_step._cache_size
    step.lower = lambda state, batch: train_step.lower(replicate(state, mesh), shard_batch(batch, mesh))
    return step


@functools.cache
def compiled_loss(devices: int, **fields: Any) -> Callable[[TrainState, Batch], float]:
    """The loss of the training step, without compiling the rest of it: a fifth of the time."""
    config, mesh = make_config(**fields), make_mesh(jax.devices()[:devices])
    train_step = make_train_step(make_model(config), make_optimizer(config, STEPS_PER_EPOCH), config, mesh)
    loss = jax.jit(lambda state, batch: train_step(state, batch)[1]["loss"])
    return lambda state, batch: float(loss(replicate(state, mesh), shard_batch(batch, mesh)))


#: Collectives in a compiled program, blocking or asynchronous.
COLLECTIVE = (
    r" (all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute|collective-broadcast|send"
    r"|recv)(?:-start)?\("
)

DROPOUT = {"model.dropout": 0.5, "model.dtype": "float32"}


def halves(batch: Batch) -> tuple[Batch, Batch]:
    size = len(batch["frame"]) // 2
    return {name: x[:size] for name, x in batch.items()}, {name: x[size:] for name, x in batch.items()}


def concatenate(*batches: Batch) -> Batch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, expected)


def same_bytes(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_eight_devices_equal_one(float64: None) -> None:
    batches = [tiny_batch(make_config(), seed) for seed in range(2)]
    one = eight = tiny_state(make_config())
    start = one.params
    for batch in batches:
        one, metrics_one = compiled_step(1)(one, batch)
        eight, metrics_eight = compiled_step(8, global_batch_norm=True)(eight, batch)
        assert_close(metrics_eight, metrics_one, 1e-12)
        assert_close(eight, one, 1e-11)
        if one.step == 1:  # the first moment is then a tenth of the gradient
            gradient = np.concatenate([10 * x.ravel() for x in jax.tree.leaves(one.optimizer_state[0].mu)])
            assert_close(metrics_one["gradient_norm"], np.linalg.norm(gradient), 1e-12)
    assert int(eight.step) == 2
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(eight.params), strict=True):
        assert not np.array_equal(before, after)


@pytest.mark.slow
def test_statistics_are_per_device_and_then_averaged(float64: None) -> None:
    state = tiny_state(make_config())
    first, second = (tiny_batch(make_config(), seed) for seed in range(2))
    both, metrics = compiled_step(2)(state, concatenate(first, second))
    parts = [compiled_step(1)(state, part) for part in (first, second)]

    def mean_of(pick: Callable[[TrainState, Metrics], Any]) -> Any:
        return jax.tree.map(lambda a, b: (a + b) / 2, *(pick(*part) for part in parts))

    assert_close(both.batch_stats, mean_of(lambda state, _: state.batch_stats), 1e-12)
    # After one step the first moment is the gradient times a constant.
    assert_close(both.optimizer_state[0].mu, mean_of(lambda state, _: state.optimizer_state[0].mu), 1e-12)
    del metrics["gradient_norm"]
    assert_close(metrics, {name: mean_of(lambda _, m, name=name: m[name]) for name in metrics}, 1e-12)


def collectives(devices: int, **fields: Any) -> Counter[str]:
    config = make_config(**fields)
    lowered = compiled_step(devices, **fields).lower(tiny_state(config), tiny_batch(config))
    return Counter(re.findall(COLLECTIVE, lowered.compile().as_text()))


@pytest.mark.parametrize("devices", [1, *(pytest.param(devices, marks=pytest.mark.slow) for devices in (2, 4, 8))])
def test_devices_exchange_averages_only(devices: int, float64: None) -> None:
    # XLA combines about 400 arrays (gradients, statistics, metrics) into two all-reduces, of float64 and of float32.
    assert collectives(devices) == {"all-reduce": 2}


@pytest.mark.slow
def test_global_batch_norm_adds_averages_only(float64: None) -> None:
    assert collectives(8, global_batch_norm=True).keys() == {"all-reduce"}


@pytest.mark.slow
def test_equals_the_step_written_with_pmap(float64: None) -> None:
    config = make_config()
    model, optimizer = make_model(config), make_optimizer(config, STEPS_PER_EPOCH)

    @functools.partial(jax.pmap, axis_name=DATA_AXIS, devices=jax.devices()[:2])
    def pmap_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient = jax.grad(loss_function, has_aux=True)
        key = jax.random.key(0)  # for dropout: off
        result = gradient(state.params, state.batch_stats, batch, key, model, config)
        gradients, (batch_stats, metrics) = jax.lax.pmean(result, DATA_AXIS)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, optimizer_state), metrics

    state, batch = tiny_state(config), concatenate(*(tiny_batch(config, seed) for seed in range(2)))
    ours, metrics = compiled_step(2)(state, batch)
    stacked = jax.tree.map(lambda x: np.stack([x, x]), state)
    parts = {name: x.reshape(2, -1, *x.shape[1:]) for name, x in batch.items()}
    theirs = jax.device_get(pmap_step(stacked, parts))
    del metrics["gradient_norm"]
    for device in range(2):
        expected = jax.tree.map(lambda x, device=device: x[device], theirs)
        assert_close((ours, metrics), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_many_steps_are_compiled_once(devices: int) -> None:
    step = compiled_step(devices, **DROPOUT)
    state = tiny_state(make_config(**DROPOUT))
    for seed in range(3):
        state, _ = step(state, tiny_batch(make_config(), seed))
    assert int(state.step) == 3
    assert step.compilations() == 1


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_metrics_in_float32_and_donates_the_old_state() -> None:
    config, mesh = make_config(**{"model.dtype": "bfloat16"}), make_mesh(jax.devices()[:1])
    step = make_train_step(make_model(config), make_optimizer(config, STEPS_PER_EPOCH), config, mesh)
    old = replicate(tiny_state(make_config(**{"model.dtype": "float32"})), mesh)
    batch = shard_batch(tiny_batch(config), mesh)
    assert "bf16" in step.lower(old, batch).as_text()
    new, metrics = step(old, batch)
    arrays = jax.tree.leaves((new.params, new.batch_stats, new.optimizer_state, metrics))
    assert {str(array.dtype) for array in arrays if array.ndim} == {"float32"}
    assert {name: str(metric.dtype) for name, metric in metrics.items()} == dict.fromkeys(metrics, "float32")
    assert np.isfinite(metrics["loss"])
    assert all(array.is_deleted() for array in jax.tree.leaves((old.params, old.optimizer_state)) if array.ndim)


@pytest.mark.slow
def test_rematerialised_is_the_same(float64: None) -> None:
    fields = {"model.dropout": 0.5}
    batch, state = tiny_batch(make_config(**fields)), tiny_state(make_config(**fields))
    plain, rematerialised = (compiled_step(1, **fields, **{"model.rematerialise": value}) for value in (False, True))
    assert_close(rematerialised(state, batch), plain(state, batch), 1e-11)  # with the same dropout


@pytest.mark.slow
def test_rematerialised_computes_twice(float64: None) -> None:
    batch, state = tiny_batch(make_config()), tiny_state(make_config())
    # Before XLA's optimizations: XLA:CPU merges the two computations again, GPUs and TPUs don't.
    before, after = (compiled_step(1, **{"model.rematerialise": value}).lower(state, batch) for value in (False, True))
    assert after.cost_analysis()["flops"] > 1.1 * before.cost_analysis()["flops"]
    assert "optimization_barrier" in after.as_text() and "optimization_barrier" not in before.as_text()


@pytest.mark.slow
def test_dropout_differs_between_devices_and_steps_and_is_reproducible() -> None:
    state, batch = tiny_state(make_config(**DROPOUT)), tiny_batch(make_config())
    step = compiled_step(2, **DROPOUT)
    once = step(state, batch)
    assert same_bytes(step(state, batch), once)
    # A sum of two numbers doesn't depend on their order: with the same dropout on both devices, nothing would change.
    exchanged = step(state, concatenate(*reversed(halves(batch))))
    assert exchanged[1]["loss"] != once[1]["loss"]
    later = step(state.replace(step=np.asarray(1, np.int32)), batch)
    assert later[1]["loss"] != once[1]["loss"]


def test_without_dropout_neither_order_nor_step_matters(float64: None) -> None:
    """The control of the test above: its differences come from dropout alone."""
    state, batch = tiny_state(make_config()), concatenate(*(tiny_batch(make_config(), seed) for seed in range(2)))
    once = compiled_loss(2)(state, batch)
    exchanged = compiled_loss(2)(state, concatenate(*reversed(halves(batch))))
    later = compiled_loss(2)(state.replace(step=np.asarray(1, np.int32)), batch)
    assert once == exchanged == later


def test_a_batch_that_cannot_be_divided_raises() -> None:
    batch = {name: x[:7] for name, x in tiny_batch(tiny_config()).items()}
    with pytest.raises(ValueError, match="partitioned 8 times, but the dimension size is 7"):
        shard_batch(batch, make_mesh())


def test_every_device_gets_its_shard_in_order() -> None:
    shards = shard_batch({"x": np.arange(16).reshape(16, 1)}, make_mesh())["x"].addressable_shards
    assert [(shard.device, *np.ravel(shard.data)) for shard in shards] == [
        (device, 2 * index, 2 * index + 1) for index, device in enumerate(jax.devices())
    ]
    copies = replicate(np.arange(3), make_mesh()).addressable_shards
    assert len(copies) == 8 and all(np.array_equal(copy.data, np.arange(3)) for copy in copies)
    assert not isinstance(replicate(np.arange(3), make_mesh()).sharding, SingleDeviceSharding)
