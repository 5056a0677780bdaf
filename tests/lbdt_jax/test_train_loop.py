"""The loop of lbdt_jax/train.py around a made-up step: what it adds to every step, what it logs, when it validates."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import logged
from tiny import tiny_config, tiny_variables

from input_pipeline.batch import Batch, random_batch
from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import train as train_module
from lbdt_jax import training_log
from lbdt_jax import validation as validation_module
from lbdt_jax.checkpoint import CheckpointError, load_checkpoint
from lbdt_jax.checkpoint_folder import find_checkpoint
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.step import TrainState

STEPS, STEP_SECONDS = 100, 0.02


class MadeUpStep:
    """A step that takes 20 ms and adds 1 to averaged weights; its loss is its number. Notes the time between steps."""

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
        return dataclasses.replace(state, step=step, ema=jax.tree.map(lambda x: x + 1, state.ema)), metrics


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """A tiny network, and the same batch in every step."""
    config = tiny_config()
    config.update(image_size=(160, 160), epochs=1.0, log_every_steps=20, picture_every_steps=1000)
    batch = random_batch(8, (160, 160)) | {"name": np.array(["a sample"] * 8, object)}
    word_vectors = load_word_vectors("random:6", ["red"])
    for name in ("find_files", "prepare_for", "check_evaluation_data"):
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


# -- validation


def scores_of(mean_iou: float) -> dict[str, Any]:
    """What `Scorer.compute` returns, with few measures."""
    pair = {"paper": {"mean_iou": mean_iou}, "standard": {"mean_iou": mean_iou / 2, "j_and_f": 0.25}}
    return {"samples": 3, **pair, "groups": {"attribute": {"samples": 3, **pair}}}


@pytest.fixture
def validated(config: ConfigDict, monkeypatch: pytest.MonkeyPatch) -> tuple[ConfigDict, list[float | BaseException]]:
    """A configuration for 10 steps, validated after 3, 6, 9 and 10; and the list of what validations will score."""
    config.update(image_size=(32, 32), epochs=0.1, log_every_steps=1, validation_every_steps=3, keep_checkpoints=1)
    results: list[float | BaseException] = []

    def score_split(*arguments: Any) -> tuple[None, dict[str, Any]]:
        result = results.pop(0)
        if isinstance(result, BaseException):
            raise result
        return None, scores_of(result)

    monkeypatch.setattr(validation_module, "score_split", score_split)
    monkeypatch.setattr(train_module, "check_validation_data", lambda *arguments: None)
    monkeypatch.setattr(train_module, "make_train_step", lambda *arguments: MadeUpStep())
    head = {collection: {"head": modules["head"]} for collection, modules in tiny_variables().items()}
    monkeypatch.setattr(train_module, "starting_variables", lambda *arguments: head)  # few arrays are saved faster
    return config, results


def steps_on_disk(workdir: Path) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").iterdir()}


def test_curves_and_the_best_checkpoint(
    validated: tuple[ConfigDict, list[float | BaseException]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, results = validated
    results += [0.5, 0.7, KeyboardInterrupt()]  # as if it was killed in the third validation
    with pytest.raises(KeyboardInterrupt):
        train_module.train(config, tmp_path)
    assert steps_on_disk(tmp_path) == {"6", "9", "best.json"} and find_checkpoint(tmp_path).name == "9"
    for folder in (tmp_path, tmp_path / "checkpoints"):
        assert find_checkpoint(folder / "best") == (tmp_path / "checkpoints" / "6").absolute()

    (tmp_path / "checkpoints" / "best.json").unlink()  # or just before it was written
    results += [0.7, 0.6]  # the third is made up for; a tie keeps the earlier one
    train_module.train(config, tmp_path)
    assert not results and steps_on_disk(tmp_path) == {"6", "10", "best.json"}
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 6, "measure": "paper/mean_iou", "score": 0.7}
    history = json.loads((tmp_path / "validation.json").read_text())
    assert [(entry["step"], entry["epoch"]) for entry in history] == [(3, 0.03), (6, 0.06), (9, 0.09), (10, 0.1)]
    assert [entry["scores"] for entry in history] == [scores_of(score) for score in (0.5, 0.7, 0.7, 0.6)]
    assert {(entry["split"], entry["weights"]) for entry in history} == {("test", "trained")}
    for name in ("validation/paper/mean_iou", "validation_groups/paper/mean_iou/attribute"):
        assert logged(tmp_path, name) == pytest.approx({3: 0.5, 6: 0.7, 9: 0.7, 10: 0.6})
    assert logged(tmp_path, "validation/seconds").keys() == {3, 6, 9, 10}
    assert (tmp_path / "validation.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "Validation after step 10: paper/mean_iou 0.6000, standard/mean_iou 0.3000, standard/j_and_f 0.25" in printed
    assert "; best: step 6, 0.7000; " in printed and "Validations: 2, which took 0 s in all." in printed

    train_module.train(config, tmp_path)  # there is nothing left to do
    config.best_measure = "standard/j_and_f"
    train_module.train(config, tmp_path)  # the same everywhere
    assert find_checkpoint(tmp_path / "best").name == "6" and steps_on_disk(tmp_path) == {"6", "10", "best.json"}
    # Steps that are taken again are validated again.
    config.update(validation_split="validation", checkpoint_every_steps=1000)
    results.append(0.1)
    train_module.train(config, tmp_path)
    assert steps_on_disk(tmp_path) == {"10", "best.json"}
    assert [e["split"] for e in json.loads((tmp_path / "validation.json").read_text())] == ["test"] * 4 + ["validation"]

    whole = json.loads((tmp_path / "validation.json").read_text())[0]
    changes = (
        {"step": "../.."},
        {"seconds": float("nan")},
        {"epoch": 10**400},
        {"split": 5},
        {"scores": {"groups": [1]}},
    )
    for broken in (5, [5], *([whole | change] for change in changes)):
        (tmp_path / "validation.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="validation.json is broken: it is no list of validations. Move it away"):
            validation_module.load_history(tmp_path / "validation.json")
    with pytest.raises(UserError, match="validation.json is broken"):
        train_module.train(config, tmp_path)
    (tmp_path / "checkpoints" / "best.json").write_text('{"step": "../10"}')
    for read in (lambda: find_checkpoint(tmp_path / "best"), lambda: train_module.train(config, tmp_path)):
        with pytest.raises(CheckpointError, match="best.json is broken: it names no step. Delete it"):
            read()


def test_several_datasets_are_validated(
    validated: tuple[ConfigDict, list[float | BaseException]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, results = validated
    config.validation_datasets = (("refer_youtube_vos", "valid"), ("refcoco", "val"))
    monkeypatch.setattr(train_module, "describe_epoch", lambda config: ["refcoco: 25.0% of the samples"])
    # After 3, 6 and 9 steps; as if it was killed between the two validations of step 9.
    results += [0.5, 0.7, 0.8, 0.2, 0.6, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        train_module.train(config, tmp_path)
    results += [0.6, 0.55, 0.1, 0.1]  # both of step 9 again, and those of step 10
    train_module.train(config, tmp_path)
    assert not results
    history = json.loads((tmp_path / "validation.json").read_text())
    expected = [(3, 0.5, 0.7), (6, 0.8, 0.2), (9, 0.6, 0.55), (10, 0.1, 0.1)]
    assert [(e["step"], e["dataset"], e["split"], e["scores"]["paper"]["mean_iou"]) for e in history] == [
        (step, dataset, split, score)
        for step, *scores in expected
        for (dataset, split), score in zip(config.validation_datasets, scores, strict=True)
    ]
    for position, name in enumerate(("refer_youtube_vos-valid", "refcoco-val"), start=1):
        curve = {row[0]: row[position] for row in expected}
        assert logged(tmp_path, f"validation/{name}/paper/mean_iou") == pytest.approx(curve)
        assert logged(tmp_path, f"validation_groups/{name}/paper/mean_iou/attribute") == pytest.approx(curve)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 3, "measure": "paper/mean_iou", "score": 0.6}  # the mean of both
    assert (tmp_path / "validation.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "refcoco: 25.0% of the samples" in printed
    assert "step 10: refer_youtube_vos-valid/paper/mean_iou 0.1000, " in printed and ", refcoco-val/paper/" in printed
    config.best_measure = "refcoco-val/standard/mean_iou"
    train_module.train(config, tmp_path)
    assert find_checkpoint(tmp_path / "best").name == "3"
    # Alone, one of them is what it was, and its names have no dataset.
    config.validation_datasets = (("refcoco", "val"),)
    config.best_measure = "paper/mean_iou"
    train_module.train(config, tmp_path)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 3, "measure": "paper/mean_iou", "score": 0.7}


@pytest.mark.parametrize(("evaluated_weights", "kind"), [("", "ema"), ("ema", "ema"), ("trained", "trained")])
def test_averaged_weights_are_validated_and_drawn(
    evaluated_weights: str,
    kind: str,
    validated: tuple[ConfigDict, list[float | BaseException]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, results = validated
    config.update(ema_decay=0.9, evaluated_weights=evaluated_weights, picture_every_steps=4)
    results += [0.5] * 4
    used: list[Any] = []
    monkeypatch.setattr(BatchedPredictor, "use", lambda self, variables: used.append(variables))
    for name in ("evaluation_examples", "contact_sheet_rows", "draw_predictions"):
        monkeypatch.setattr(training_log, name, lambda *arguments: [])
    train_module.train(config, tmp_path)
    start = train_module.starting_variables()
    # First when the predictor is made, then to validate after 3, 6, 9 and 10 steps, and to draw after 4 and 8.
    for step, variables in zip((0, 3, 4, 6, 8, 9, 10), used, strict=True):
        added = step if kind == "ema" else 0
        jax.tree.map(lambda x, y, a=added: np.testing.assert_allclose(x, y + a, atol=1e-4), variables, start)
    history = json.loads((tmp_path / "validation.json").read_text())
    assert [entry["weights"] for entry in history] == [kind] * 4


def test_the_logged_speed_leaves_out_validations(
    validated: tuple[ConfigDict, list[float | BaseException]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = validated
    config.log_every_steps = 2
    now = [0.0]

    class TimedStep(MadeUpStep):
        def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
            now[0] += STEP_SECONDS
            return super().__call__(state, batch)

    def score_split(*arguments: Any) -> tuple[None, dict[str, Any]]:
        now[0] += 0.5
        return None, scores_of(0.5)

    for module in (training_log, validation_module):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(validation_module, "score_split", score_split)
    monkeypatch.setattr(train_module, "make_train_step", lambda *arguments: TimedStep())
    train_module.train(config, tmp_path)
    assert now[0] == pytest.approx(10 * STEP_SECONDS + 4 * 0.5)
    # An interval of two steps of 8 samples is written one step late, but before a validation at once.
    steps = {2: 3, 4: 2, 6: 1, 8: 3, 10: 1}
    expected = {step: 2 * 8 / (count * STEP_SECONDS) for step, count in steps.items()}
    assert logged(tmp_path, "samples_per_second") == pytest.approx(expected, rel=1e-5)


def test_options_that_contradict_the_training(config: ConfigDict, tmp_path: Path) -> None:
    config.update(learning_rate_schedule="cosine", warmup_steps=100)
    with pytest.raises(UserError, match="warmup_steps is 100; .* below the 100 steps"):
        train_module.train(config, tmp_path)
    config.update(warmup_steps=0, evaluated_weights="ema")
    with pytest.raises(UserError, match="evaluated_weights is 'ema', and config.ema_decay is 0.0"):
        train_module.train(config, tmp_path)
