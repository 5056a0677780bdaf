"""What training logs: metrics, and contact sheets of predictions, without holding up the devices."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.datasets import dataset_config, evaluated_splits
from input_pipeline.pipeline import evaluation_examples
from input_pipeline.text.encoders import SentenceEncoder
from lbdt_jax.evaluate import contact_sheet_rows
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.parallel import to_local
from lbdt_jax.step import Metrics, NotFinite, TrainState, evaluated_variables
from lbdt_jax.visualization.contact_sheet import Example, contact_sheet
from lbdt_jax.visualization.sheet import save_image
from lbdt_jax.workdir import MetricWriter


class StepResult(NamedTuple):
    """The metrics of a step, still on the devices, and the names of the samples in its batch."""

    step: int
    metrics: Metrics
    sample_names: np.ndarray


def mean_metrics(results: list[StepResult]) -> dict[str, float]:
    """The mean of every metric over some steps; empty without steps.

    Raises:
      NotFinite: a loss or gradient is infinite or NaN.
    """
    fetched = jax.device_get([result.metrics for result in results])
    for result, metrics in zip(results, fetched, strict=True):
        if not np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all():
            raise NotFinite(
                f"Step {result.step}: the loss is {metrics['loss']}, the gradient norm {metrics['gradient_norm']}. "
                f"The batch: {'; '.join(result.sample_names)}. "
                "Earlier checkpoints are kept; a lower config.learning_rate may help."
            )
    return {name: float(np.mean([metrics[name] for metrics in fetched])) for name in (fetched or [{}])[0]}


class MetricLog:
    """Writes mean metrics to TensorBoard and the progress bar, one step late: fetching them at once would leave the
    devices without work until the next step is started.
    """

    def __init__(
        self,
        writer: MetricWriter,
        progress: tqdm,
        config: ConfigDict,
        learning_rate: Callable[[int], Any],
    ) -> None:
        self._writer, self._progress = writer, progress
        self._batch_size, self._learning_rate = config.batch_size, learning_rate
        self._recent: list[StepResult] = []
        self._ended: list[StepResult] = []
        self._written = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Adds a step that was started, and writes the interval that ended before it. Raises NotFinite."""
        self.write()
        self._recent.append(result)

    def end_interval(self) -> None:
        """The steps so far are written together."""
        self._ended, self._recent = self._recent, []

    def write(self) -> None:
        """Writes the interval that has ended, if it is not written yet. Raises NotFinite."""
        if not self._ended:
            return
        step, count = self._ended[-1].step, len(self._ended)
        means = mean_metrics(self._ended)
        seconds, self._written = time.monotonic() - self._written, time.monotonic()
        means["learning_rate"] = float(self._learning_rate(step - 1))
        means["samples_per_second"] = count * self._batch_size / seconds
        self._writer.write_scalars(step, means)
        self._progress.set_postfix_str(
            f"loss {means['loss']:.3f}, IoU {means['iou']:.3f}, {means['samples_per_second']:.0f} samples/s",
            refresh=False,  # shown with the next update, which is rare in a log file
        )
        self._ended = []

    def exclude(self, seconds: float) -> None:
        """Leaves out the last `seconds`, in which no step was taken, of the interval whose speed is written next."""
        self._written += seconds

    def check(self) -> None:
        """Waits for all steps, and writes the interval if it has ended. Raises NotFinite."""
        self.write()
        mean_metrics(self._recent)


class Background:
    """Runs tasks one after the other in a thread; a context manager. A task's error is raised by what follows it."""

    def __enter__(self) -> Background:
        self._executor = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        return self

    def __exit__(self, *exception: object) -> None:
        self._executor.shutdown()
        if exception[0] is None and self._pending is not None:
            self._pending.result()

    def submit(self, function: Callable[..., None], *arguments: Any) -> None:
        """Waits for the task before, and starts this one."""
        if self._pending is not None:
            self._pending.result()
        self._pending = self._executor.submit(function, *arguments)


def log_predictions(
    writer: MetricWriter,
    config: ConfigDict,
    workdir: Path,
    step: int,
    predictor: BatchedPredictor,
    state: TrainState,
    text_input: SentenceEncoder,
    drawing: Background,
) -> None:
    """Predicts the first frames of the splits to evaluate, and draws them in the background."""
    predictor.use(to_local(evaluated_variables(state, config)))
    splits = evaluated_splits(config)
    rows = []
    for dataset, split in splits:
        examples = evaluation_examples(dataset_config(config, dataset), split, text_input)
        rows += contact_sheet_rows(
            predictor, itertools.islice(examples, -(-config.contact_sheet_samples // len(splits)))
        )
    drawing.submit(draw_predictions, writer, config, workdir, step, rows)


def draw_predictions(writer: MetricWriter, config: ConfigDict, workdir: Path, step: int, rows: list[Example]) -> None:
    """Draws predictions to pictures/ and TensorBoard."""
    splits = ", ".join(f"{dataset} {split}" for dataset, split in evaluated_splits(config))
    sheet = contact_sheet(rows, f"{splits}, step {step}")
    save_image(sheet, workdir / "pictures" / f"step_{step:06d}.png")
    writer.write_images(step, {"predictions": np.asarray(sheet)[None]})
