"""Validation during training: scores of a split, their curves, and which checkpoint is the best.

WORKDIR/validation.json    the list of all validations, by step: {"step", "epoch", "seconds" that it took, "split",
                           "weights" ("trained" or "ema"), "scores" as in the json of an evaluation}; with several
                           datasets one for each, with its "dataset"
WORKDIR/validation.png     its curves
WORKDIR/validation/        what the benchmark's own scorer reads, of the last validation, for datasets that have one
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.datasets import DatasetSplit, dataset_config, label, validated_splits
from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from input_pipeline.pipeline import evaluation_examples
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder
from lbdt_jax.checkpoint import CheckpointWriter
from lbdt_jax.cli import write_json
from lbdt_jax.config import PROTOCOLS
from lbdt_jax.evaluate import Sample, score_split
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.metrics import flat_scores
from lbdt_jax.parallel import Stopped, broadcast_from_first_process, is_first_process, to_local
from lbdt_jax.scoring import SCORERS, Scorer
from lbdt_jax.step import TrainState, evaluated_variables
from lbdt_jax.training_log import Background
from lbdt_jax.visualization.validation_curves import plot
from lbdt_jax.workdir import MetricWriter

#: Limit for validation.json. A validation takes about 10 kB.
MAX_JSON_BYTES = 256 * 2**20
#: Frame pairs among which `check_validation_data` looks for one with ground truth.
FIRST_FRAME_PAIRS = 100
#: An element of validation.json.
Entry = dict[str, Any]


def period(config: ConfigDict, epoch_steps: int) -> int:
    """The number of steps from one validation to the next; 0 without validation."""
    if config.validation_every_epochs:
        return max(1, round(config.validation_every_epochs * epoch_steps))
    return int(config.validation_every_steps)


def check_validation_data(config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
    """Checks, before hours of training, that all splits have ground truth and scores by config.best_measure.

    Raises:
      UserError: there is no such split, ground truth or measure, or its records lack what the dataset's scorer needs.
    """
    chosen, measure = split_measure(config.best_measure)
    splits = validated_splits(config)
    for dataset, split in splits:
        measures = _measures(dataset_config(config, dataset), split, sentence_encoder)
        if not measures:
            raise UserError(
                f"The first frames of split {split!r} of {dataset} have no ground truth, so a training can't be "
                "validated on it. Choose another config.validation_split (with several datasets: "
                "config.validation_datasets), or turn the validation off: config.validation_every_epochs=0.0 and "
                "config.validation_every_steps=0."
            )
        if measure and chosen in ("", label(dataset, split)) and measure not in measures:
            raise UserError(
                f"config.best_measure is {config.best_measure!r}; split {split!r} of {dataset} has "
                f"{', '.join(sorted(measures))}."
            )
    labels = [label(*row) for row in splits]
    if chosen and chosen not in labels:
        raise UserError(f"config.best_measure is {config.best_measure!r}; what is validated is {', '.join(labels)}.")


def _measures(config: ConfigDict, split: str, sentence_encoder: SentenceEncoder) -> set[str]:
    """The measures that a split of config.dataset has, by its first frames; none without ground truth."""
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
                return {f"{protocol}/{measure}" for protocol, measure, _ in flat_scores(scorer.compute())}
    return set()


def split_measure(measure: str) -> tuple[str, str]:
    """The parts of config.best_measure: DATASET-SPLIT or "", and PROTOCOL/MEASURE."""
    first, _, rest = measure.partition("/")
    return ("", measure) if first in PROTOCOLS or not rest else (first, rest)


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
        self._period, self._splits = period(config, self._epoch_steps), validated_splits(config)
        self._weights = "ema" if config.ema_decay and config.evaluated_weights != "trained" else "trained"
        self._seconds: list[float] = []
        self._history: list[Entry] = []
        if self._period:
            history = load_history(workdir / "validation.json")
            self._history = [entry for entry in history if entry["step"] <= first_step]
        if self._validated() and is_first_process():  # the command may have been killed before it had marked the best
            self._mark_best()

    def is_due(self, step: int) -> bool:
        """Whether the training is validated after a step."""
        return bool(self._period) and (step % self._period == 0 or step == self._total_steps)

    def is_missing(self, step: int) -> bool:
        """Whether the validation after the step from which a training resumes was never finished; same everywhere."""
        done = step == 0 or step in self._validated()
        return bool(broadcast_from_first_process(self.is_due(step) and not done))

    def run(self, state: TrainState, should_stop: Callable[[], bool] = lambda: False) -> float:
        """Validates a state, which has to be saved already, and marks the best checkpoint.

        Returns:
          The seconds that this took.

        Raises:
          UserError: the records are broken, or the model's output is not finite.
          Stopped: `should_stop` returned True. The validation is repeated when the training resumes.
        """
        step, start = int(state.step), time.monotonic()

        def on_sample(sample: Sample) -> None:
            if should_stop():
                raise Stopped(
                    f"Stopped by SIGTERM in the validation after step {step}, which is saved. The same command resumes."
                )

        self._predictor.use(to_local(evaluated_variables(state, self._config)))
        entries: list[Entry] = []
        for dataset, split in self._splits:
            split_start, path = time.monotonic(), self._workdir / "validation" / label(dataset, split)
            config = dataset_config(self._config, dataset)
            with tqdm(desc=f"validate {dataset} {split}", unit="sentence", leave=False) as progress:
                _, scores = score_split(
                    self._predictor, config, split, self._sentence_encoder, path, progress, on_sample
                )
            entry = {"step": step, "epoch": step / self._epoch_steps, "seconds": time.monotonic() - split_start}
            named = {"dataset": dataset} if self._splits != [(self._config.dataset, split)] else {}
            entries.append({**entry, **named, "split": split, "weights": self._weights, "scores": scores})
        seconds = time.monotonic() - start
        self._seconds.append(seconds)
        if is_first_process():
            self._record(step, seconds, entries)
        return seconds

    def print_cost(self) -> None:
        """Prints how much time the validations took."""
        if self._seconds:
            tqdm.write(f"Validations: {len(self._seconds)}, which took {sum(self._seconds):.0f} s in all.")

    def _record(self, step: int, seconds: float, entries: Sequence[Entry]) -> None:
        """Writes the scores to TensorBoard, validation.json and validation.png, and prints some of them."""
        scalars = {"validation/seconds": seconds}
        for entry in entries:
            name, scores = self._name(entry), entry["scores"]
            scalars |= {f"validation/{name}{p}/{m}": value for p, m, value in flat_scores(scores)}
            for group, group_scores in scores["groups"].items():
                for protocol, measure, value in flat_scores(group_scores):
                    if measure == "mean_iou":
                        scalars[f"validation_groups/{name}{protocol}/{measure}/{group}"] = value
        self._writer.write_scalars(step, scalars)
        self._writer.flush()
        self._history += entries
        write_json(self._history, self._workdir / "validation.json")
        best = self._mark_best()
        curves = {name: [e for e in self._comparable() if self._name(e) == name] for name in map(self._name, entries)}
        self._drawing.submit(plot, curves, best["step"] if best else None, self._workdir / "validation.png")
        shown = {"paper/mean_iou", "standard/mean_iou", "standard/j_and_f", split_measure(self._config.best_measure)[1]}
        printed = [
            f"{self._name(entry)}{p}/{m} {value:.4f}"
            for entry in entries
            for p, m, value in flat_scores(entry["scores"])
            if f"{p}/{m}" in shown
        ]
        best_step = "" if best is None else f"; best: step {best['step']}, {best['score']:.4f}"
        tqdm.write(f"Validation after step {step}: {', '.join(printed)}{best_step}; {seconds:.1f} s")

    def _split_of(self, entry: Entry) -> DatasetSplit:
        return entry.get("dataset", self._config.dataset), entry["split"]

    def _name(self, entry: Entry) -> str:
        """What the names of an entry's measures begin with: "DATASET-SPLIT/", or "" if only one split is validated."""
        return f"{label(*self._split_of(entry))}/" if len(self._splits) > 1 else ""

    def _comparable(self) -> list[Entry]:
        """The validations of the same kind of weights on the same splits as now."""
        return [e for e in self._history if self._split_of(e) in self._splits and e["weights"] == self._weights]

    def _validated(self) -> dict[int, list[Entry]]:
        """Step -> its entries in `_comparable`, of the steps that were validated on all splits."""
        by_step: dict[int, dict[DatasetSplit, Entry]] = {}
        for entry in self._comparable():
            by_step.setdefault(entry["step"], {})[self._split_of(entry)] = entry
        return {step: list(entries.values()) for step, entries in by_step.items() if len(entries) == len(self._splits)}

    def _score(self, entries: Sequence[Entry]) -> float | None:
        """The score of a step by config.best_measure, a mean over splits unless it names one; None without one."""
        chosen, measure = split_measure(self._config.best_measure)
        scores = [
            {f"{p}/{m}": value for p, m, value in flat_scores(entry["scores"])}.get(measure)
            for entry in entries
            if chosen in ("", label(*self._split_of(entry)))
        ]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known and len(known) == len(scores) else None

    def _mark_best(self) -> dict[str, Any] | None:
        """Marks the best of the checkpoints that are there, at equal scores the earliest. Returns its best.json."""
        steps, measure = set(self._checkpoints.steps), self._config.best_measure
        validated = {step: entries for step, entries in self._validated().items() if step in steps}
        best: dict[str, Any] | None = None
        for step, entries in validated.items() if measure else ():
            score = self._score(entries)
            if score is not None and (best is None or score > best["score"]):
                best = {"step": step, "measure": measure, "score": score}
        self._checkpoints.mark_validated(list(validated), best)
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
        and isinstance(entry.get("dataset", ""), str)
        and isinstance(groups, dict)
        and all(isinstance(group, dict) for group in groups.values())
    )
