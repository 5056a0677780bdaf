"""Training and evaluation of a tiny network, from generating Moving Shapes to scores and images; the command line.

Only the first run compiles. Later runs in this file reuse its training step and initial variables, since nothing that
they change affects these.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from fake_mevis import write_mevis
from fake_refcoco import write_refcoco
from fake_video_folders import write_ref_davis17, write_refer_youtube_vos
from jax.sharding import Mesh
from ml_collections import ConfigDict
from paths import ROOT
from PIL import Image
from tiny import tiny_config

from configs import a2d
from input_pipeline.batch import Batch, random_batch
from input_pipeline.errors import UserError
from input_pipeline.moving_shapes.raw_layout import write_raw
from input_pipeline.pipeline import steps_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.readers.ref_davis17 import ANNOTATORS
from input_pipeline.record_index import INDEX_FILE
from input_pipeline.report import load_report, records_dir
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import train as train_module
from lbdt_jax import validation as validation_module
from lbdt_jax.checkpoint import CheckpointError, load_checkpoint
from lbdt_jax.checkpoint_folder import find_checkpoint
from lbdt_jax.evaluate import evaluate
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.parallel import Stopped, StopRequest
from lbdt_jax.step import NotFinite, TrainState
from lbdt_jax.train import train
from lbdt_jax.validation import check_validation_data
from lbdt_jax.workdir import check_and_save_config, check_and_save_records, open_workdir

pytestmark = pytest.mark.usefixtures("fast_compilation")

SCENES = {"train": 3, "validation": 1, "test": 3, "unseen_words": 2}


@pytest.fixture(scope="module")
def config(fast_compilation: None, tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A configuration for four steps on a few scenes, with their records."""
    data = tmp_path_factory.mktemp("data")
    write_raw(data / "raw" / "moving_shapes", scenes=SCENES, workers=1)
    config = tiny_config()
    config.dataset = "moving_shapes"
    config.data_dir = str(data)
    config.word_vectors = "random:8"
    config.batch_size = 8
    config.log_every_steps = 1
    config.picture_every_steps = 2
    config.evaluation_sentences = 3
    config.checkpoint_every_steps = 2
    config.contact_sheet_samples = 2
    prepare(config.dataset, config.raw, config.data_dir, config.frame_interval)
    config.epochs = 4 / steps_per_epoch(config)  # four steps
    return config


@contextlib.contextmanager
def compilations() -> Iterator[Counter[str]]:
    """Counts how often each program is compiled or read from the compilation cache."""
    compiled: Counter[str] = Counter()

    def listen(event: str, seconds: float, **details: str) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[details["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def trained(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Counter[str]]:
    """The workdir of a training run, and what it compiled."""
    workdir = tmp_path_factory.mktemp("run")
    with compilations() as compiled:
        train(config, workdir)
    return workdir, compiled


@pytest.fixture(scope="module", autouse=True)
def compile_once(fast_compilation: None) -> Iterator[None]:
    """Shares programs and initial variables among the runs of this file; `trained` is the first of them."""
    compile_train_step, initial_variables = train_module.compile_train_step, train_module.initial_variables
    steps: list[Any] = []
    variables: dict[Any, Any] = {}

    def compile_step(train_step: Any, state: TrainState, batches: Iterator[Batch], mesh: Mesh) -> Any:
        if not steps:
            compiled, batches = compile_train_step(train_step, state, batches, mesh)
            steps.append(compiled)
        return steps[0], batches

    def draw_variables(model: LBDT, config: ConfigDict, word_vector_size: int) -> dict[str, Any]:
        key = model, config.seed, config.max_words, word_vector_size
        if key not in variables:
            variables[key] = initial_variables(model, config, word_vector_size)
        return variables[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "compile_train_step", compile_step)
        patch.setattr(train_module, "initial_variables", draw_variables)
        yield


@pytest.fixture(scope="module")
def workdir(trained: tuple[Path, Counter[str]]) -> Path:
    return trained[0]


def test_training_writes_all_files(config: ConfigDict, workdir: Path) -> None:
    assert json.loads((workdir / "config.json").read_text())["dataset"] == "moving_shapes"
    assert json.loads((workdir / "words_without_vector.json").read_text()) == []
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert list(workdir.glob("events.out.tfevents.*"))
    with Image.open(workdir / "pictures" / "step_000004.png") as image:
        assert image.width > 500


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(config: ConfigDict, workdir: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "run"
    shutil.copytree(workdir, stopped)
    shutil.rmtree(stopped / "checkpoints" / "4")
    train(config, stopped)
    expected, resumed = load_checkpoint(workdir), load_checkpoint(stopped)
    assert expected.step == resumed.step == 4
    jax.tree.map(np.testing.assert_array_equal, expected.variables, resumed.variables)
    at_two = load_checkpoint(workdir / "checkpoints" / "2")
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), expected.variables["params"], at_two.variables["params"])
    assert all(jax.tree.leaves(changed))


def test_a_run_that_ends_in_a_validation_resumes_to_the_bits_of_one_without(
    config: ConfigDict, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.copy_and_resolve_references()
    config.update(validation_every_steps=2, validation_split="validation", picture_every_steps=1000)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(validation_module, "score_split", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        train(config, tmp_path)
    assert load_checkpoint(tmp_path).step == 2 and not (tmp_path / "validation.json").exists()
    train(config, tmp_path)
    expected, resumed = load_checkpoint(workdir), load_checkpoint(tmp_path)
    assert expected.step == resumed.step == 4
    jax.tree.map(np.testing.assert_array_equal, expected.variables, resumed.variables)
    history = json.loads((tmp_path / "validation.json").read_text())
    assert [entry["step"] for entry in history] == [2, 4]
    scores = {entry["step"]: entry["scores"]["paper"]["mean_iou"] for entry in history}
    assert find_checkpoint(tmp_path / "best").name == str(max(scores, key=lambda step: scores[step]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_split": "valid"}, "no split 'valid'"),
        (
            {"best_measure": "paper/j_and_f"},
            "paper/j_and_f.; split .test. of moving_shapes has paper/f1",
        ),
    ],
)
def test_what_a_validation_needs_is_checked_before_training(
    config: ConfigDict, tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    config = config.copy_and_resolve_references()
    config.update(validation_every_steps=2, **fields)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_validation_needs_ground_truth(config: ConfigDict, tmp_path: Path) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    shutil.rmtree(raw / "valid/Annotations")
    config = on_dataset(config, "refer_youtube_vos", raw, "valid")
    config.validation_every_epochs = 1.0
    prepare(config.dataset, config.raw, config.data_dir, config.frame_interval)
    with pytest.raises(UserError, match="split 'valid' of refer_youtube_vos have no ground truth"):
        check_validation_data(config, load_word_vectors("random:8", ["dog"]))


@pytest.mark.slow
def test_saves_on_sigterm_and_every_few_minutes(
    config: ConfigDict, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training_batches = train_module.training_batches

    def batches(*arguments):
        for step, batch in enumerate(training_batches(*arguments), start=1):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(train_module, "training_batches", batches)
    config = config.copy_and_resolve_references()
    config.update(checkpoint_every_steps=1000, checkpoint_every_minutes=1e-9, log_every_steps=2)
    previous_handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="Stopped by SIGTERM after step 3, which is saved"):
        train(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is previous_handler
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}

    monkeypatch.setattr(train_module, "training_batches", training_batches)
    config.checkpoint_every_minutes = 0
    train(config, tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "4"}
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(workdir).variables, load_checkpoint(tmp_path).variables)


def test_training_compiles_every_program_once(trained: tuple[Path, Counter[str]]) -> None:
    # Four steps, and contact sheets twice.
    assert {name: trained[1][f"jit({name})"] for name in ("step_on_device", "encode", "segment")} == {
        "step_on_device": 1,
        "encode": 1,
        "segment": 1,
    }


def test_evaluation_scores_every_sample_once_and_draws_some(config: ConfigDict, workdir: Path, capsys) -> None:
    with compilations() as compiled:
        result = evaluate(load_checkpoint(workdir), config, workdir)
    # Eight sentences for every frame, three at a time: the last batch is padded.
    assert compiled["jit(encode)"] == compiled["jit(segment)"] == 1
    saved = json.loads((workdir / "evaluation" / "moving_shapes-test.json").read_text())
    assert saved == result
    assert (saved["dataset"], saved["split"], saved["checkpoint_step"]) == ("moving_shapes", "test", 4)
    assert saved["samples"] == 3 * 2 * 8
    tiers = saved["groups"]
    assert set(tiers) == {"attribute", "motion", "comparison", "relation"}
    assert sum(tier["samples"] for tier in tiers.values()) == saved["samples"]
    for protocol, measure in (("paper", "mean_iou"), ("standard", "mean_iou"), ("paper", "f1"), ("standard", "j")):
        mean = sum(tier["samples"] * tier[protocol][measure] for tier in tiers.values()) / saved["samples"]
        np.testing.assert_allclose(saved[protocol][measure], mean, rtol=1e-9)
    for kind in ("best", "worst", "random", "attention-1", "attention-2"):
        assert (workdir / "evaluation" / f"moving_shapes-test-{kind}.png").exists()
    printed = capsys.readouterr().out
    assert all(tier in printed for tier in tiers)
    assert "mean IoU" in printed


def test_no_contact_sheets(config: ConfigDict, workdir: Path, tmp_path: Path) -> None:
    config = config.copy_and_resolve_references()
    config.contact_sheet_samples = 0
    assert evaluate(load_checkpoint(workdir), config, tmp_path)["samples"] == 3 * 2 * 8
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["moving_shapes-test.json"]


def test_unseen_words_are_scored_separately(config: ConfigDict, workdir: Path) -> None:
    config = config.copy_and_resolve_references()
    config.update(evaluation_split="unseen_words", evaluation_attention_sheets=0)
    groups = evaluate(load_checkpoint(workdir), config, workdir)["groups"]
    assert "seen words" in groups
    assert all(name == "seen words" or " for " in name for name in groups)


def test_a_run_does_not_resume_with_another_configuration(config: ConfigDict, workdir: Path, tmp_path: Path) -> None:
    other = config.copy_and_resolve_references()
    other.learning_rate = 0.5
    (tmp_path / "checkpoints").symlink_to(workdir / "checkpoints")  # without config.json
    for folder in (workdir, tmp_path):
        with pytest.raises(CheckpointError, match=r"learning_rate: 0\.0001 there, 0\.5 requested"):
            train(other, folder)
    check_and_save_config(config, tmp_path / "config.json")
    changeable = config.copy_and_resolve_references()
    changeable.log_every_steps = 7
    check_and_save_config(changeable, workdir / "config.json")


def test_a_run_does_not_resume_on_other_records(config: ConfigDict, tmp_path: Path) -> None:
    moved = config.copy_and_resolve_references()
    moved.data_dir = str(tmp_path / "moved")
    index, copy = (records_dir(c.data_dir, "moving_shapes") / INDEX_FILE for c in (config, moved))
    copy.parent.mkdir(parents=True)
    shutil.copy(index, copy)
    check_and_save_records(config, tmp_path / "records.json")
    check_and_save_records(moved, tmp_path / "records.json")
    entries = json.loads(copy.read_text())
    entries["train"][0][0][1] ^= 1  # the checksum of a record
    copy.write_text(json.dumps(entries))
    with pytest.raises(CheckpointError, match=f"trained on other records than those in {copy.parent}"):
        check_and_save_records(moved, tmp_path / "records.json")


def test_ctrl_c_waits_for_the_end_of_the_step() -> None:
    """Raised anywhere in a step, it may be lost: Python drops exceptions in callbacks of the garbage collector."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop_request:
            assert not stop_request.should_stop(1)
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                stop_request.should_stop(2)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)  # a second one is not waited for
                time.sleep(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_workdir_has_one_run_at_a_time(config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    with pytest.raises(KeyboardInterrupt), open_workdir(config, tmp_path, []) as writer:
        monkeypatch.setattr(writer, "close", lambda: closed.append(True))
        with pytest.raises(UserError, match=f"Another process is writing to {tmp_path}"):
            train(config, tmp_path)
        raise KeyboardInterrupt
    assert closed  # also after an error
    with open_workdir(config, tmp_path, []):
        pass


@pytest.mark.parametrize(
    ("broken_step", "log_every", "newest_step"),
    [pytest.param(1, 1, 0, id="at once"), pytest.param(3, 100, 2, id="before a save", marks=pytest.mark.slow)],
)
def test_nan_stops_the_run_and_names_the_batch(
    broken_step: int,
    log_every: int,
    newest_step: int,
    config: ConfigDict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config.copy_and_resolve_references()
    config.log_every_steps, config.picture_every_steps, config.epochs = log_every, 1000, 1.5 * config.epochs

    def batches(*arguments: Any) -> Iterator[Batch]:
        size, words = tuple(config.image_size), config.max_words
        for step in range(1, 7):
            batch = random_batch(config.batch_size, size, words, 8, seed=step)
            batch["words"] = batch["words"] * (np.nan if step == broken_step else 1)
            batch["name"] = np.array([f"video {step}"] * config.batch_size, object)
            yield batch

    monkeypatch.setattr(train_module, "training_batches", batches)
    with pytest.raises(NotFinite, match=rf"Step {broken_step}: the loss is nan.*video {broken_step}"):
        train(config, tmp_path)
    # The initial state is saved too, so there always is a checkpoint to return to.
    newest = load_checkpoint(tmp_path)
    assert newest.step == newest_step
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(newest.variables))


def on_dataset(config: ConfigDict, name: str, raw: Path, split: str) -> ConfigDict:
    """The configuration to evaluate the same model on another dataset, with its published scores."""
    dataset_config = importlib.import_module(f"configs.{name}").get_config()
    config = config.copy_and_resolve_references()
    config.update({"dataset": name, "raw": str(raw), "data_dir": str(raw.parent), "evaluation_split": split})
    config.update({"frame_interval": dataset_config.frame_interval, "published": dataset_config.published})
    config.evaluation_attention_sheets = 0
    return config


def test_mevis_with_and_without_ground_truth(config: ConfigDict, workdir: Path, tmp_path: Path, capsys) -> None:
    config = on_dataset(config, "mevis", write_mevis(tmp_path / "raw"), "valid_u")
    result = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert (result["samples"], result["groups"]["no target"]["samples"]) == (12, 3)
    assert {"n_acc", "t_acc", "final"} < result["standard"].keys() and "29.3" not in capsys.readouterr().out
    config.evaluation_split = "valid"
    result = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert (result["samples"], result["without_truth"]) == (4, 4)
    assert "server's scores (percent): j 27.8, f 30.8, j_and_f 29.3" in capsys.readouterr().out
    assert (tmp_path / "evaluation/mevis-valid-standard.zip").exists()


def test_grefcoco_is_trained_on_and_scored(config: ConfigDict, workdir: Path, tmp_path: Path, capsys) -> None:
    config = on_dataset(config, "refcoco", write_refcoco(tmp_path / "raw", "grefcoco", "grefs(unc).json"), "val")
    config.dataset = "grefcoco"
    result = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert (result["samples"], result["groups"]["no target"]["gres"].keys()) == (2, {"giou", "ciou", "n_acc"})
    assert "GRES" in capsys.readouterr().out and result["notes"]
    assert load_report(config.data_dir, "grefcoco")["splits"]["train"]["groups"] == {
        "one object": 1,
        "several objects": 2,
    }
    config.update(batch_size=2, sentences_per_frame=1)
    config.epochs = 1.0
    (batch,) = itertools.islice(training_batches(config, load_checkpoint(workdir).sentence_encoder), 1)
    assert batch["target"].any((1, 2)).all()


def test_several_splits_are_scored_each(config: ConfigDict, workdir: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(Path(config.data_dir) / "moving_shapes", data / "moving_shapes")
    write_refcoco(data / "raw" / "refcoco")
    config = config.copy_and_resolve_references()
    config.update(data_dir=str(data), evaluation_attention_sheets=0)
    config.evaluation_datasets = (("moving_shapes", "test"), ("refcoco", "val"), ("refcoco", "testA"))
    results = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert list(results) == ["moving_shapes-test", "refcoco-val", "refcoco-testA"]
    printed = capsys.readouterr().out
    for name, result in results.items():
        dataset, split = name.split("-")
        assert (result["dataset"], result["split"]) == (dataset, split) and f"\n{dataset}, split {split}:" in printed
        assert json.loads((tmp_path / "evaluation" / f"{name}.json").read_text()) == result
        assert (tmp_path / "evaluation" / f"{name}-random.png").exists()
    config.update(evaluation_datasets=())
    assert evaluate(load_checkpoint(workdir), config, tmp_path) == results["moving_shapes-test"]
    config.evaluation_datasets = (("moving_shapes", "test"), ("refcoco", "valid"))
    with pytest.raises(UserError, match="refcoco has no split 'valid'; it has train, val, testA"):
        evaluate(load_checkpoint(workdir), config, tmp_path)
    config.update(validation_every_steps=2, validation_datasets=(("moving_shapes", "test"), ("refcoco", "val")))
    for measure, message in (
        ("refcoco-test/paper/mean_iou", "what is validated is moving_shapes-test, refcoco-val"),
        ("refcoco-val/gres/giou", "split 'val' of refcoco has paper/f1"),
        ("gres/giou", "split 'test' of moving_shapes has paper/f1"),
    ):
        config.best_measure = measure
        with pytest.raises(UserError, match=message):
            check_validation_data(config, load_word_vectors("random:8", ["dog"]))


def test_refer_youtube_vos_with_some_ground_truth(config: ConfigDict, workdir: Path, tmp_path: Path, capsys) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    (raw / "valid/Annotations/0062f687f1/00005.png").unlink()
    config = on_dataset(config, "refer_youtube_vos", raw, "valid")
    result = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert (result["samples"], result["dataset"], result["split"]) == (2, "refer_youtube_vos", "valid")
    assert all(0 <= result[protocol]["j_and_f"] <= 1 for protocol in ("paper", "standard"))
    printed = capsys.readouterr().out
    assert "published" in printed and "49.4" in printed and "1 x mask missing" in printed
    assert result["without_truth"] == 2 and result["notes"]["mask missing"] == 1

    shutil.rmtree(raw / "valid/Annotations")
    shutil.rmtree(tmp_path / "refer_youtube_vos")
    result = evaluate(load_checkpoint(workdir), config, tmp_path)
    assert result == json.loads((tmp_path / "evaluation/refer_youtube_vos-valid.json").read_text())
    assert result["samples"] == 4 and not result.keys() & {"paper", "standard"}
    assert result["without_truth"] == 4 and "4 predictions are not scored" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "evaluation/refer_youtube_vos-valid-standard.zip") as file:
        expected = [f"Annotations/0062f687f1/{e}/{frame}.png" for frame in ("00000", "00005") for e in (0, 1)]
        assert sorted(file.namelist()) == sorted(expected)


def test_ref_davis17_is_scored_by_annotator(config: ConfigDict, workdir: Path, tmp_path: Path, capsys) -> None:
    raw = write_ref_davis17(tmp_path / "davis")
    result = evaluate(load_checkpoint(workdir), on_dataset(config, "ref_davis17", raw, "val"), tmp_path)
    assert result["samples"] == 3 * 2 * 4 and list(result["groups"]) == list(ANNOTATORS)
    means = [group["standard"]["j_and_f"] for group in result["groups"].values()]
    assert result["standard"]["j_and_f"] == pytest.approx(np.mean(means))
    printed = capsys.readouterr().out
    assert "Per expression" in printed and "54.3" in printed
    images = sorted((tmp_path / "evaluation/ref_davis17-val-annotators").rglob("*.png"))
    assert [str(path.relative_to(images[0].parents[2])) for path in images] == [
        f"anno_{annotator}/dogs-scale/{frame:05d}.png" for annotator in range(4) for frame in range(3)
    ]


def test_an_unknown_split_raises(config: ConfigDict, workdir: Path) -> None:
    config = config.copy_and_resolve_references()
    config.evaluation_split = "tset"
    with pytest.raises(UserError, match="no split 'tset'.*test"):
        evaluate(load_checkpoint(workdir), config, workdir)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", (60, 64), "image_size"),
        ("model.dtype", "float64", "float64.*JAX_ENABLE_X64=1"),
        ("model.resnet_depth", 42, "resnet_depth is 42"),
        ("model.attention_heads", 3, "attention_heads, 3"),
        ("batch_size", 1000, "don't fill a batch"),
        ("epochs", 1e-6, "makes 0 steps"),
        ("evaluation_split", "tset", "no split 'tset'.*test"),  # needed by the evaluation only
        ("evaluation_frames", 0, "evaluation_frames is 0"),
        ("word_vectors", "no/such/file.txt", "no/such/file.txt"),
        ("initial_weights", "no/such.pth", "there is no no/such.pth"),
    ],
)
def test_an_invalid_configuration_raises(config, field, value, message, tmp_path: Path) -> None:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_all_missing_files_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"(?s)kgavrilyuk\.github\.io.*glove\.840B.*resnet50-0676ba61\.pth"):
        train(a2d.get_config(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_encoder", "no/such/folder", "no folder and no installed package 'no/such/folder'"),
        ("batch_size", 7, "batch_size 7 can't be divided among 8 devices"),
        ("evaluated_weights", "ema", "there would be no average"),
        ("model.dtype", "float64", "JAX_ENABLE_X64=1"),
    ],
)
def test_what_needs_no_records_is_checked_before_they_are_made(
    config: ConfigDict, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({field: value, "data_dir": str(tmp_path / "data")})
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/shapes.py", "--config.nonsense=1"], "no field 'nonsense'"),
        (["--config=configs/shapes.py", "--config.model.dropuot=0"], "no field 'dropuot'"),
        (
            ["--config=configs/shapes.py", "--config.batch_size=-2"],
            "config.batch_size is -2; it must be a whole number",
        ),
        (["--config=configs/shapes.py", "train"], "train: unexpected argument"),
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        (["--config=configs/shapes.py", "--nonsense"], "nonsense"),
        (["--config=configs/shapes.py", "--flagfile=nowhere"], "Unable to open flagfile"),
        (["--config=configs/shapes.py", "--config.batch_size=many"], "many"),
        (["--config=configs/a2d.py:lbdt7"], "lbdt7"),
        ([], "--config is missing"),
        (["--config=configs/a2d.py", "--config.data_dir=nowhere"], "kgavrilyuk.github.io"),
        (["--config=configs/shapes.py", "--mode=evaluate", "--workdir=nowhere"], "No checkpoint in nowhere"),
        (["--config=configs/shapes.py", "--mode=augmentations", "--workdir=nowhere"], "Nothing is augmented"),
    ],
)
def test_command_line_errors_are_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lbdt_jax.main", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (ROOT / "nowhere").exists()


def test_progress_is_rare_in_a_log_file(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\nfrom configs import base\nfrom lbdt_jax.main import start_jax\n"
        "start_jax(base.get_config(), Path('WORKDIR'))\nfrom lbdt_jax.train import tqdm\nprint(tqdm().mininterval)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_MININTERVAL"}
    for changes, seconds in ({}, 10.0), ({"TQDM_MININTERVAL": "2.5"}, 2.5):
        command, env = [sys.executable, "-c", program], environment | changes
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=True)
        assert float(done.stdout) == seconds
