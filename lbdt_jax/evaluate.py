"""Evaluation: scores a model on every sample of a split, in both protocols, and writes scores and contact sheets."""

from __future__ import annotations

import copy
import heapq
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.datasets import all_datasets, dataset_config, evaluated_splits, label
from input_pipeline.errors import UserError
from input_pipeline.pipeline import EvaluationExample, evaluation_examples, samples_per_epoch
from input_pipeline.prepare import prepare_for
from input_pipeline.record_dataset import split_counts
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder, TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors, extend
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.checkpoint_folder import checkpoint_name
from lbdt_jax.cli import write_json
from lbdt_jax.config import check_config
from lbdt_jax.inference.explain import explain
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.metrics import format_table, region_similarity, resize_logits
from lbdt_jax.parallel import all_gather_object, is_first_process, run_sequentially
from lbdt_jax.scoring import SCORERS, Scorer
from lbdt_jax.step import is_frozen, make_model
from lbdt_jax.text_features import precomputed_features
from lbdt_jax.visualization.attention import attention_sheet
from lbdt_jax.visualization.contact_sheet import Example, contact_sheet
from lbdt_jax.visualization.sheet import save_image

#: Configuration fields that are taken from the checkpoint.
CHECKPOINT_FIELDS = ("model", "image_size", "max_words", "text_encoder", "text_encoder_learning_rate", "tokenizer")

model_inputs = operator.attrgetter(*MODEL_FIELDS)  # of an EvaluationExample


def evaluate(checkpoint: Checkpoint, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Scores a checkpoint on config.evaluation_split of config.dataset, or on several splits of several datasets.

    All processes of a run call this and share the samples; the first one writes and prints. If the benchmark's own
    scorer needs files, the first process handles all samples.

    Writes WORKDIR/evaluation/<dataset>-<split>.json, contact sheets of the best, worst and random samples, attention
    maps of the first random samples, and the files for the benchmark's own scorer; prints a table of the scores.

    Args:
      checkpoint: the model. Its own configuration determines the network and the preprocessing.
      config: the datasets, batch sizes, and the dtype of the computation.
      workdir: where the results go; earlier results of the same name are replaced.

    Returns:
      The content of the json: {"dataset", "split", "samples", "checkpoint", "checkpoint_step", "paper", "standard",
      "groups", "without_truth", "notes"}, scores as fractions. "groups" has the samples and scores of each group of
      sentences (Moving Shapes: tiers); "without_truth" counts predictions without public ground truth, which have no
      scores; "notes" counts, by reason, what is missing or changed in the records; "weights" is "ema" where the moving
      average of the weights was scored. See `lbdt_jax.scoring` for what datasets add. Empty in processes other than the
      first. Of several splits {"DATASET-SPLIT": the content of its json}.

    Raises:
      UserError: a field of the configuration is wrong; the dataset is missing, has no such split or words without
        suitable vectors; or config.published has the scores of another network.
    """
    check_config(config)
    splits = evaluated_splits(config)
    run_sequentially(lambda: prepare_for(config, list(dict.fromkeys(dataset for dataset, _ in splits))))
    for dataset, split in splits:
        split_counts(dataset_config(config, dataset), split)  # before hours of evaluation
    config = with_checkpoint_fields(config, checkpoint)
    predictor = BatchedPredictor(
        make_model(config), checkpoint.variables, config.evaluation_frames, config.evaluation_sentences
    )
    results = {}
    for dataset, split in splits:
        if len(splits) > 1:
            print(f"\n{dataset}, split {split}:")
        own_config = dataset_config(config, dataset, split)
        results[label(dataset, split)] = evaluate_split(predictor, checkpoint, own_config, workdir)
    return results if len(results) > 1 else results.popitem()[1]


def evaluate_split(
    predictor: BatchedPredictor, checkpoint: Checkpoint, config: ConfigDict, workdir: Path
) -> dict[str, Any]:
    """`evaluate` of one split: config.evaluation_split of config.dataset, whose records exist."""
    sentence_encoder = sentence_encoder_for(checkpoint, config)
    split, folder = config.evaluation_split, workdir / "evaluation"
    name = label(config.dataset, split)
    folder.mkdir(parents=True, exist_ok=True)
    selector = SampleSelector(config.contact_sheet_samples, config.seed, jax.process_index())
    with tqdm(desc=f"evaluate {config.dataset} {split}", unit="sentence", smoothing=0.05) as progress:
        scorer, scores = score_split(predictor, config, split, sentence_encoder, folder / name, progress, selector.add)
    selectors = all_gather_object(selector)
    if not is_first_process():
        return {}

    result = {
        "dataset": config.dataset,
        "split": split,
        "checkpoint": checkpoint_name(checkpoint.path, workdir),
        "checkpoint_step": checkpoint.step,
        **scores,
    }
    result["without_truth"] = scorer.unscored
    if checkpoint.weights != "trained":
        result["weights"] = checkpoint.weights
    report = load_report(config.data_dir, config.dataset)
    notes = [*report["skipped_lines"].items(), *report["splits"][split]["skipped"].items()]
    result["notes"] = {reason: len(locations) for reason, locations in notes}
    write_json(result, folder / f"{name}.json")
    save_contact_sheets(config, checkpoint, sentence_encoder, selector.merge(selectors), folder / name)
    print_result(config, result, scorer, folder / name)
    return result


def score_split(
    predictor: BatchedPredictor,
    config: ConfigDict,
    split: str,
    sentence_encoder: SentenceEncoder,
    path: Path,
    progress: tqdm,
    on_sample: Callable[[Sample], None],
) -> tuple[Scorer, dict[str, Any]]:
    """Segments and scores every sample of a split; for evaluation and for validation while training.

    All processes of a run call this and share the samples. If the benchmark's own scorer needs files, the first process
    handles all samples.

    Args:
      predictor: the model.
      config: the dataset, and the preprocessing of the model.
      split: of config.dataset.
      sentence_encoder: encodes the sentences as the model expects.
      path: of the files for the benchmark's own scorer, without suffix.
      progress: counts the samples of this process.
      on_sample: called with every sample of this process.

    Returns:
      The scorer, and its scores, see `Scorer.compute`: of all samples in the first process, empty in the others.

    Raises:
      UserError: there is no such split, its records are broken, or the model's output is not finite.
    """
    scorer_class, examples, samples = share_of_this_process(config, split, sentence_encoder)
    progress.reset(samples)
    with scorer_class(path, load_report(config.data_dir, config.dataset)["layout"]) as scorer:
        for example, logits in predictor.segment(examples, model_inputs):
            for index, (prediction, iou) in enumerate(scorer.add(example, logits)):
                on_sample(Sample(example, index, prediction, iou))
                progress.update()
        states = all_gather_object(scorer.state())
        if not is_first_process():
            return scorer, {}
        scorer.merge(states)
        return scorer, scorer.compute()


# -- Before the loop


def check_evaluation_data(config: ConfigDict, sentence_encoder: SentenceEncoder) -> None:
    """Checks, before hours of training, that each dataset has the split to evaluate, and what its scorer needs.

    Raises:
      UserError: there is no such split, or its records lack something.
    """
    for dataset, split in evaluated_splits(config):
        examples = evaluation_examples(dataset_config(config, dataset), split, sentence_encoder)
        for example in itertools.islice(examples, 1):
            SCORERS.get(dataset, Scorer).check(example)


def with_checkpoint_fields(config: ConfigDict, checkpoint: Checkpoint) -> ConfigDict:
    """A copy of `config` with the checkpoint's network and preprocessing, but the dtype of `config`.

    Raises:
      UserError: config.published has the scores of another network.
    """
    layers = checkpoint.config.model.transfer_layers
    if config.published and layers != config.model.transfer_layers:
        raise UserError(
            f"{checkpoint.path} is an LBDT-{layers}, but the published scores to compare with are those of "
            f"LBDT-{config.model.transfer_layers}. Choose another --config, such as configs/a2d.py:lbdt{layers}."
        )
    config, dtype = config.copy_and_resolve_references(), config.model.dtype
    for name in CHECKPOINT_FIELDS:
        config[name] = copy.deepcopy(checkpoint.config[name])
    config.model.dtype = dtype
    return config


def sentence_encoder_for(checkpoint: Checkpoint, config: ConfigDict) -> SentenceEncoder:
    """What encodes the sentences of the dataset as the checkpoint's model expects.

    For word vectors: those of the checkpoint, on another dataset extended by config.word_vectors. For a transformer:
    its tokenizer or, if it is frozen, its precomputed features.

    Raises:
      UserError: the word vectors are missing, or are not those of the training run.
    """
    sentence_encoder = checkpoint.sentence_encoder
    vocabulary = load_report(config.data_dir, config.dataset)["tokens"]
    if isinstance(sentence_encoder, WordVectors) and (
        not sentence_encoder.words or config.dataset not in all_datasets(checkpoint.config)
    ):
        return extend(sentence_encoder, config.word_vectors, vocabulary)
    _, unknown = sentence_encoder.coverage(vocabulary)
    if unknown:
        examples = " ".join(map(repr, unknown[:10]))
        print(f"{len(unknown)} of {len(vocabulary)} words are unknown to the model and read as blanks: {examples}")
    return with_precomputed_features(config, checkpoint.variables, sentence_encoder)


def with_precomputed_features(
    config: ConfigDict, variables: dict[str, Any], sentence_encoder: SentenceEncoder
) -> SentenceEncoder:
    """The precomputed features of a frozen transformer; `sentence_encoder` itself if there is no such transformer."""
    if not (is_frozen(config) and isinstance(sentence_encoder, TransformerTokenizer)):
        return sentence_encoder
    # The first process computes them, the others read them from disk.
    return run_sequentially(lambda: precomputed_features(config, variables, sentence_encoder))


def share_of_this_process(
    config: ConfigDict, split: str, sentence_encoder: SentenceEncoder
) -> tuple[type[Scorer], Iterator[EvaluationExample], int]:
    """The scorer of this process, its examples, and the number of their samples (approximate for several processes)."""
    process_index, process_count = jax.process_index(), jax.process_count()
    scorer_class = SCORERS.get(config.dataset, Scorer)
    if scorer_class is Scorer:
        examples = evaluation_examples(config, split, sentence_encoder, process_index, process_count)
        return scorer_class, examples, samples_per_epoch(config, split) // process_count
    if process_index == 0:  # one process writes the files, so it needs all examples
        return scorer_class, evaluation_examples(config, split, sentence_encoder), samples_per_epoch(config, split)
    return Scorer, iter(()), 0


# -- In the loop


class Sample(NamedTuple):
    """A sentence of an example, its prediction (h, w) bool, and its IoU, None without ground truth."""

    example: EvaluationExample
    sentence_index: int
    prediction: np.ndarray
    iou: float | None


class SampleSelector:
    """Keeps the best, the worst and some random samples of all that are added.

    Args:
      size: number of samples of each kind; 0 keeps none.
      seed: of the random choice.
      process_index: of the process whose samples are added.
    """

    def __init__(self, size: int, seed: int, process_index: int = 0) -> None:
        self._size, self._process_index, self._count = size, process_index, 0
        self._rng = np.random.default_rng((seed, process_index))
        self._heaps: dict[str, list[tuple[float, int, int, Sample]]] = {"best": [], "worst": [], "random": []}

    def add(self, sample: Sample) -> None:
        """Keeps the sample if it is among the most extreme of its kind."""
        self._count += 1
        if not self._size:
            return
        keys = {"random": self._rng.random()}
        if sample.iou is not None:
            keys |= {"best": sample.iou, "worst": -sample.iou}
        for kind, key in keys.items():
            heap = self._heaps[kind]
            if len(heap) < self._size or key > heap[0][0]:
                # Process index and count break ties, since samples can't be compared.
                entry = (key, -self._process_index, -self._count, sample)
                (heapq.heappush if len(heap) < self._size else heapq.heapreplace)(heap, entry)

    def merge(self, selectors: Sequence[SampleSelector]) -> dict[str, list[Sample]]:
        """Kind -> the samples to show, the most extreme first, of all processes' selectors (this one included)."""
        chosen = {}
        for kind in self._heaps:
            entries = heapq.nlargest(self._size, (entry for selector in selectors for entry in selector._heaps[kind]))
            if entries:
                chosen[kind] = [sample for *_, sample in entries]
        return chosen


# -- After the loop


def save_contact_sheets(
    config: ConfigDict,
    checkpoint: Checkpoint,
    sentence_encoder: SentenceEncoder,
    samples: dict[str, list[Sample]],
    path: Path,
) -> None:
    """Draws contact sheets, PATH-<kind>.png, and attention maps of random samples, PATH-attention-<number>.png."""
    title, step = f"{config.dataset} {config.evaluation_split}", f"step {checkpoint.step}"
    for kind, chosen in samples.items():
        rows = [contact_sheet_row(sample) for sample in chosen]
        sheet = contact_sheet(rows, f"{title}: {kind} samples, {step}")
        save_image(sheet, path.with_name(f"{path.name}-{kind}.png"))
    model, random_samples = make_model(config), samples.get("random", [])[: config.evaluation_attention_sheets]
    for number, sample in enumerate(random_samples, start=1):
        example, index = sample.example, sample.sentence_index
        words, word_mask = example.words[index], example.word_mask[index]
        explanation = explain(model, checkpoint.variables, example.frame, example.earlier_frame, words, word_mask)
        tokens = sentence_encoder.tokens(example.sentences[index].text, len(words))
        row = contact_sheet_row(sample)
        sheet = attention_sheet(row, tokens, explanation, f"{title}: attention, {step}")
        save_image(sheet, path.with_name(f"{path.name}-attention-{number}.png"))


def contact_sheet_row(sample: Sample) -> Example:
    """A sample as a row of a contact sheet."""
    example, sentence = sample.example, sample.example.sentences[sample.sentence_index]
    group = f" {sentence.group}" if sentence.group else ""
    return Example(
        frame=example.original_frame,
        earlier_frame=example.original_earlier_frame,
        mask=example.masks[sample.sentence_index],
        prediction=sample.prediction,
        sentence=sentence.text,
        iou=sample.iou,
        name=f"{example.video}/{example.frame_index}/{sentence.instance}{group}",
    )


def contact_sheet_rows(predictor: BatchedPredictor, examples: Iterable[EvaluationExample]) -> list[Example]:
    """Predicts the first sentence of every example and returns the rows of a contact sheet."""
    rows = []
    for example, logits in predictor.segment(examples, model_inputs):
        prediction, mask = resize_logits(logits[0], example.original_frame.shape[:2]) > 0, example.masks[0]
        iou = None if mask is None else region_similarity(prediction, mask)
        rows.append(contact_sheet_row(Sample(example, 0, prediction, iou)))
    return rows


def print_result(config: ConfigDict, result: dict[str, Any], scorer: Scorer, path: Path) -> None:
    """Prints the table of scores, notes on the data, and where the files are."""
    published = () if config.evaluation_split in ("train", "valid_u") else config.published  # they belong to others
    print(format_table({"all": result, **result["groups"]}, published))
    if published and "standard" not in result:
        scores = ", ".join(f"{measure} {100 * score:.1f}" for _, measure, score in published)
        print(f"Published, to compare with the server's scores (percent): {scores}.")
    if scorer.unscored:
        print(f"{scorer.unscored} predictions are not scored: their ground truth is not public, or can't be read.")
    if result["notes"]:
        print("Left out of the data, or changed in them (see report.json beside the records):")
    for reason, count in result["notes"].items():
        print(f"  {count} x {reason}")
    if scorer.files:
        print(f"For the benchmark's own scorer: {', '.join(f'{path.parent}/{file}' for file in scorer.files)}.")
    images = f"; images: {path.name}-*.png beside it" if config.contact_sheet_samples else ""
    print(f"Scores: {path}.json{images}.")
