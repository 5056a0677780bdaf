"""Validation while training: scores of a split on the way, their curves, and which checkpoint is the best.

WORKDIR/validation.json    the list of all validations, by step: {"step", "epoch", "seconds" that it took, "split",
                           "weights" ("trained" or "ema"), "scores" as in the json of an evaluation}
WORKDIR/validation.png     its curves
WORKDIR/validation/        what the benchmark's own scorer reads, of the last validation, for datasets that have one
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from input_pipeline.pipeline import evaluation_examples
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder
from lbdt_jax.checkpoint import CheckpointWriter
from lbdt_jax.cli import atomic_write, write_json
from lbdt_jax.config import PROTOCOLS
from lbdt_jax.evaluate import Sample, score_split
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.parallel import Stopped, broadcast_from_first_process, is_first_process, to_local
from lbdt_jax.scoring import SCORERS, Scorer
from lbdt_jax.step import TrainState, evaluated_variables
from lbdt_jax.training_log import Background
from lbdt_jax.workdir import MetricWriter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of validation.json. A validation takes about 10 kB.
MAX_JSON_BYTES = 256 * 2**20
#: Frame pairs among which `check_validation_data` looks for one with ground truth.
FIRST_FRAME_PAIRS = 100
#: Measures in the plot, those that a dataset has; and the panel of the groups of sentences.
PLOTTED, GROUPS = ("mean_iou", "overall_iou", "mean_precision", "coco_map", "j_and_f"), "standard: mean_iou, by group"

#: An element of validation.json.
Entry = dict[str, Any]


def period(config: ConfigDict, epoch_steps: int) -> int:
    """The number of steps from one validation to the next; 0 without validation."""
    if config.validation_every_epochs:
        return max(1, round(config.validation_every_epochs * epoch_steps))
    return int(config.validation_every_steps)


def validation_split(config: ConfigDict) -> str:
    """The split on which a training is validated."""
    return str(config.validation_split or config.evaluation_split)


def check_validation_data(config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
    """Checks, before hours of training, that the split has ground truth and scores by config.best_measure.

    Raises:
      UserError: there is no such split, ground truth or measure, or its records lack what the dataset's scorer needs.
    """
    split, measures = validation_split(config), set[str]()
    layout = load_report(config.data_dir, config.dataset)["layout"]
    examples = itertools.islice(evaluation_examples(config, split, sentence_encoder), FIRST_FRAME_PAIRS)
    with (
        tempfile.TemporaryDirectory() as folder,
        SCORERS.get(config.dataset, Scorer)(Path(folder) / "check", layout) as scorer,
    ):
        for example in examples:
            scorer.check(example)
            scorer.add(example, np.zeros((len(example.sentences), *config.image_size), np.float32))
            if any(mask is not None for mask in example.masks):
                measures = {f"{protocol}/{measure}" for protocol, measure, _ in _flat_scores(scorer.compute())}
                break
    if not measures:
        raise UserError(
            f"The first frames of split {split!r} of {config.dataset} have no ground truth, so a training can't be "
            "validated on it. Choose another config.validation_split, or turn the validation off: "
            "config.validation_every_epochs=0.0 and config.validation_every_steps=0."
        )
    if config.best_measure and config.best_measure not in measures:
        raise UserError(
            f"config.best_measure is {config.best_measure!r}; split {split!r} of {config.dataset} has "
            f"{', '.join(sorted(measures))}."
        )


class Validation:
    """The validations of a training, of this run of the command and of earlier ones.

    All processes of a run make the same calls; the first one writes and prints. Nothing here affects what is learned:
    the random streams, the order of the data and the training step are untouched.

    Args:
      config: of the training.
      workdir: of the training.
      steps: the numbers of steps in an epoch and in the whole training.
      predictor: is given the weights to validate.
      sentence_encoder: encodes the sentences as the model expects.
      checkpoints: of the training.
      writer: of TensorBoard's event file.
      drawing: draws the plot.
      first_step: the step from which the training resumes; later validations are forgotten: they will be repeated.

    Raises:
      UserError: validation.json is broken.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        steps: tuple[int, int],
        predictor: BatchedPredictor,
        sentence_encoder: SentenceEncoder,
        checkpoints: CheckpointWriter,
        writer: MetricWriter,
        drawing: Background,
        first_step: int,
    ) -> None:
        self._config, self._workdir = config, workdir
        self._epoch_steps, self._total_steps = steps
        self._predictor, self._sentence_encoder = predictor, sentence_encoder
        self._checkpoints, self._writer, self._drawing = checkpoints, writer, drawing
        self._period, self._split = period(config, self._epoch_steps), validation_split(config)
        self._weights = "ema" if config.ema_decay and config.evaluated_weights != "trained" else "trained"
        self._seconds: list[float] = []
        self._history: list[Entry] = []
        if self._period:
            history = load_history(workdir / "validation.json")
            self._history = [entry for entry in history if entry["step"] <= first_step]
        if self._comparable() and is_first_process():  # the command may have been killed before it had marked the best
            self._mark_best()

    def is_due(self, step: int) -> bool:
        """Whether the training is validated after a step."""
        return bool(self._period) and (step % self._period == 0 or step == self._total_steps)

    def is_missing(self, step: int) -> bool:
        """Whether the validation after the step from which a training resumes was never finished; same everywhere."""
        done = step == 0 or any(entry["step"] == step for entry in self._comparable())
        return bool(broadcast_from_first_process(self.is_due(step) and not done))

    def run(self, state: TrainState, should_stop: Callable[[], bool] = lambda: False) -> float:
        """Validates a state, which has to be saved already, and marks the best checkpoint.

        Returns:
          The seconds that this took.

        Raises:
          UserError: the records are broken, or the model's output is not finite.
          Stopped: `should_stop` returned True. The validation is repeated when the training resumes.
        """
        step, start, dataset = int(state.step), time.monotonic(), self._config.dataset

        def on_sample(sample: Sample) -> None:
            if should_stop():
                raise Stopped(
                    f"Stopped by SIGTERM in the validation after step {step}, which is saved. The same command resumes."
                )

        self._predictor.use(to_local(evaluated_variables(state, self._config)))
        path = self._workdir / "validation" / f"{dataset}-{self._split}"
        with tqdm(desc=f"validate {dataset} {self._split}", unit="sentence", leave=False) as progress:
            _, scores = score_split(
                self._predictor, self._config, self._split, self._sentence_encoder, path, progress, on_sample
            )
        seconds = time.monotonic() - start
        self._seconds.append(seconds)
        if is_first_process():
            self._record(step, seconds, scores)
        return seconds

    def print_cost(self) -> None:
        """Prints how much time the validations took."""
        if self._seconds:
            tqdm.write(f"Validations: {len(self._seconds)}, which took {sum(self._seconds):.0f} s in all.")

    def _record(self, step: int, seconds: float, scores: dict[str, Any]) -> None:
        """Writes the scores to TensorBoard, validation.json and validation.png, and prints some of them."""
        scalars = {f"validation/{protocol}/{measure}": value for protocol, measure, value in _flat_scores(scores)}
        for group, group_scores in scores["groups"].items():
            for protocol, measure, value in _flat_scores(group_scores):
                if measure == "mean_iou":
                    scalars[f"validation_groups/{protocol}/{measure}/{group}"] = value
        self._writer.write_scalars(step, scalars | {"validation/seconds": seconds})
        self._writer.flush()
        entry = {"step": step, "epoch": step / self._epoch_steps, "seconds": seconds, "split": self._split}
        self._history.append({**entry, "weights": self._weights, "scores": scores})
        write_json(self._history, self._workdir / "validation.json")
        best = self._mark_best()
        self._drawing.submit(plot, self._comparable(), best["step"] if best else None, self._workdir / "validation.png")
        shown = {"paper/mean_iou", "standard/mean_iou", "standard/j_and_f", self._config.best_measure}
        printed = [f"{p}/{m} {value:.4f}" for p, m, value in _flat_scores(scores) if f"{p}/{m}" in shown]
        best_step = "" if best is None else f"; best: step {best['step']}, {best['score']:.4f}"
        tqdm.write(f"Validation after step {step}: {', '.join(printed)}{best_step}; {seconds:.1f} s")

    def _comparable(self) -> list[Entry]:
        """The validations of the same kind of weights on the same split as now."""
        return [e for e in self._history if (e["split"], e["weights"]) == (self._split, self._weights)]

    def _mark_best(self) -> dict[str, Any] | None:
        """Marks the best of the checkpoints that are there, at equal scores the earliest. Returns its best.json."""
        steps, measure = set(self._checkpoints.steps), self._config.best_measure
        entries = [entry for entry in self._comparable() if entry["step"] in steps]
        best: dict[str, Any] | None = None
        for entry in entries if measure else ():
            score = {f"{p}/{m}": value for p, m, value in _flat_scores(entry["scores"])}.get(measure)
            if score is not None and (best is None or score > best["score"]):
                best = {"step": entry["step"], "measure": measure, "score": score}
        self._checkpoints.mark_validated([entry["step"] for entry in entries], best)
        return best


def load_history(path: Path) -> list[Entry]:
    """The content of a validation.json, in the order of steps; empty without one. Raises UserError if it is broken."""
    if not path.exists():
        return []
    try:
        history = json.loads(read_limited(path, MAX_JSON_BYTES))
        if not isinstance(history, list) or not all(map(_is_entry, history)):
            raise ValueError("it is no list of validations")
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is broken: {error}. Move it away to go on; the scores in it are then no longer compared."
        ) from error
    return sorted(history, key=lambda entry: entry["step"])


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    numbers, scores = [entry.get(name) for name in ("step", "epoch", "seconds")], entry.get("scores")
    groups = scores.get("groups") if isinstance(scores, dict) else None
    return (
        all(isinstance(value, (int, float)) and 0 <= value < 2**31 for value in numbers)
        and isinstance(entry["step"], int)
        and all(isinstance(entry.get(name), str) for name in ("split", "weights"))
        and isinstance(groups, dict)
        and all(isinstance(group, dict) for group in groups.values())
    )


def _flat_scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(protocol, measure, score) of all scores of a split or a group."""
    for protocol in PROTOCOLS:
        measures = scores.get(protocol)
        for measure, value in measures.items() if isinstance(measures, Mapping) else ():
            if isinstance(value, (int, float)):
                yield protocol, measure, value


# -- Plot


def plot(history: Sequence[Entry], best_step: int | None, path: Path) -> None:
    """Draws the curves of validations: a panel for each protocol, and one for the mean IoU of groups of sentences."""
    from matplotlib.figure import Figure  # here, since it takes most of a second

    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for entry in history:
        rows = [(p, m, value) for p, m, value in _flat_scores(entry["scores"]) if m in PLOTTED]
        for group, scores in entry["scores"]["groups"].items():
            rows += [(GROUPS, group, value) for p, m, value in _flat_scores(scores) if f"{p}: {m}" in GROUPS]
        for panel, name, value in rows:
            epochs, values = curves.setdefault(panel, {}).setdefault(name, ([], []))
            epochs.append(entry["epoch"])
            values.append(value)
    if not curves:
        return
    best_epoch = next((entry["epoch"] for entry in history if entry["step"] == best_step), None)
    figure = Figure(figsize=(5.5 * len(curves), 4.5), layout="constrained")
    figure.suptitle(
        f"Validation on split {history[-1]['split']!r}, {history[-1]['weights']} weights", x=0.02, ha="left"
    )
    for axes, (panel, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        _plot_panel(axes, panel, lines, best_epoch)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


def _plot_panel(
    axes: Axes, title: str, lines: Mapping[str, tuple[list[float], list[float]]], best_epoch: float | None
) -> None:
    """Draws name -> (epochs, scores); the best checkpoint is a vertical line."""
    for name, (epochs, values) in lines.items():
        axes.plot(epochs, values, marker="o", markersize=3, label=name)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="gray", linestyle=":", label="best checkpoint")
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small")
