"""The loop of lbdt_jax/train.py around a made-up step: what it adds to every step, and what it logs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import logged
from tiny import tiny_config, tiny_variables

from input_pipeline.batch import Batch, random_batch
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import train as train_module
from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.step import TrainState

STEPS, STEP_SECONDS = 100, 0.02


class MadeUpStep:
    """A step that takes 20 ms; its loss is its number. Notes what it takes between two steps."""

    def __init__(self) -> None:
        self.overhead: list[tuple[float, float]] = []
        self._ended: tuple[float, float] | None = None

    def lower(self, *arguments: Any) -> MadeUpStep:
        return self

    compile = lower

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        if self._ended is not None:
            self.overhead.append((time.perf_counter() - self._ended[0], time.thread_time() - self._ended[1]))
        time.sleep(STEP_SECONDS)
        step = state.step + 1
        metrics = dict.fromkeys(("loss", "bce", "dice", "iou", "gradient_norm"), step.astype(jnp.float32))
        self._ended = time.perf_counter(), time.thread_time()
        return dataclasses.replace(state, step=step), metrics


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """A tiny network, and the same batch in every step."""
    config = tiny_config()
    config.update(image_size=(160, 160), epochs=1.0, log_every_steps=20, picture_every_steps=1000)
    batch = random_batch(8, (160, 160)) | {"name": np.array(["a sample"] * 8, object)}
    word_vectors = load_word_vectors("random:6", ["red"])
    for name in ("prepare", "check_evaluation_data"):
        monkeypatch.setattr(train_module, name, lambda *arguments: None)
    monkeypatch.setattr(train_module, "steps_per_epoch", lambda config: STEPS)
    monkeypatch.setattr(train_module, "open_sentence_encoder", lambda config: (config, word_vectors, None, []))
    monkeypatch.setattr(train_module, "with_precomputed_features", lambda config, variables, encoder: encoder)
    monkeypatch.setattr(train_module, "starting_variables", lambda *arguments: tiny_variables())
    monkeypatch.setattr(train_module, "training_batches", lambda *arguments: itertools.repeat(batch))
    return config


def test_overhead_per_step(config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = MadeUpStep()
    monkeypatch.setattr(train_module, "make_train_step", lambda *arguments: step)
    train_module.train(config, tmp_path)
    assert len(step.overhead) == STEPS - 1
    seconds, computing = np.median(step.overhead, axis=0)
    print(f"overhead per step, median: {1e3 * seconds:.2f} ms, {1e3 * computing:.2f} ms of them computing")
    assert computing < 0.002 and seconds < STEP_SECONDS  # with room for other work on the machine
    assert load_checkpoint(tmp_path).step == STEPS
    # The mean loss of the steps 1 to 20, 21 to 40, ...
    assert logged(tmp_path, "loss") == {20: 10.5, 40: 30.5, 60: 50.5, 80: 70.5, 100: 90.5}
    assert logged(tmp_path, "samples_per_second").keys() == {20, 40, 60, 80, 100}
