"""Scores a model on a split, in both protocols, every sample once; writes the numbers and pictures of what it found."""

from __future__ import annotations

import copy
import heapq
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.errors import UserError
from input_pipeline.pipeline import EvaluationExample, evaluation_examples, samples_per_epoch
from input_pipeline.prepare import prepare
from input_pipeline.report import load_report
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.text.word_vectors import WordVectors, extend
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.cli import write_json
from lbdt_jax.inference.explain import explain
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.metrics import StandardScores, foreground_score, format_table, resize_logits
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.parallel import gather, run_sequentially
from lbdt_jax.scoring import SCORING, Scoring
from lbdt_jax.step import is_frozen, make_model
from lbdt_jax.text_features import precomputed_features
from lbdt_jax.visualization import render

#: Fields that a checkpoint decides, and not the configuration that it is evaluated with.
OF_THE_MODEL = ("model", "image_size", "max_words", "text_encoder", "text_encoder_learning_rate", "tokenizer")

model_inputs = operator.attrgetter(*MODEL_FIELDS)  # of an EvaluationExample


def evaluate(checkpoint: Checkpoint, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Scores a checkpoint on config.evaluation_split of config.dataset.

    All processes of a run call it together and share the samples; the first of them writes and prints. Where the
    benchmark's own scorer reads files, it also does all the samples.

    Writes WORKDIR/evaluation/<dataset>-<split>.json, three contact sheets beside it (best, worst and random samples),
    the attention of the first random samples, and what the benchmark's own scorer reads; prints the scores as a table.

    Args:
      checkpoint: the model. Its own configuration tells the network and the preparation of its input.
      config: the data to use, how many samples at once, and the dtype of the computation.
      workdir: where the results go; results of the same name are replaced.

    Returns:
      What the json holds: {"dataset", "split", "samples", "checkpoint_step", "paper", "standard", "groups"}, scores
      as fractions; "groups" has the samples, "paper" and "standard" of each group of sentences (Moving Shapes: tiers).
      Scores are left out where the truth is not published; "without_truth" counts such answers. "notes" counts what
      the records lack of the data set, or have otherwise, by its reason. See `lbdt_jax.scoring` for what data sets add.
      Nothing in processes other than the first.

    Raises:
      UserError: the data set is not there, has no such split, or words of it have no fitting vectors; or the published
        scores to compare with are those of another network.
    """
    run_sequentially(lambda: prepare(config.dataset, config.raw, config.data_dir, config.frame_interval))
    config, split = config.copy_and_resolve_references(), config.evaluation_split
    layers = checkpoint.config.model.transfer_layers
    if config.published and layers != config.model.transfer_layers:
        raise UserError(
            f"{checkpoint.path} is an LBDT-{layers}, but the published scores to stand beside it would be those of "
            f"LBDT-{config.model.transfer_layers}. Choose another --config, such as configs/a2d.py:lbdt{layers}."
        )
    dtype = config.model.dtype
    for name in OF_THE_MODEL:
        config[name] = copy.deepcopy(checkpoint.config[name])
    config.model.dtype = dtype
    reader = reader_for(checkpoint, config)
    model = make_model(config)
    predictor = BatchedPredictor(model, checkpoint.variables, config.evaluation_frames, config.evaluation_sentences)
    report = load_report(config.data_dir, config.dataset)
    scoring_kind = SCORING.get(config.dataset, Scoring)
    process, processes = jax.process_index(), jax.process_count()
    if scoring_kind is Scoring:
        examples = evaluation_examples(config, split, reader, process, processes)
        samples = samples_per_epoch(config, split) // processes
    elif process == 0:
        examples = evaluation_examples(config, split, reader)
        samples = samples_per_epoch(config, split)
    else:  # one process writes the files, so it does it all
        scoring_kind, examples, samples = Scoring, iter(()), 0

    name, folder = f"{config.dataset}-{split}", workdir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    sheets = SampleSelector(config.contact_sheet_samples, config.seed, process)
    with (
        scoring_kind(folder / name, report["layout"]) as scoring,
        tqdm(total=samples, desc=f"evaluate {config.dataset} {split}", unit="sentence", smoothing=0.05) as progress,
    ):
        for example, logits in predictor.segment(examples, model_inputs):
            for index, (prediction, iou) in enumerate(scoring.add(example, logits)):
                sheets.add(Sample(example, index, prediction, iou))
                progress.update()
        parts, all_sheets = zip(*gather((scoring.part(), sheets)), strict=True)
        if process:
            return {}
        scoring.join(parts)
        result = {"dataset": config.dataset, "split": split, "checkpoint_step": checkpoint.step, **scoring.compute()}
    result["without_truth"] = scoring.unscored
    notes = [*report["skipped_lines"].items(), *report["splits"][split]["skipped"].items()]
    result["notes"] = {reason: len(places) for reason, places in notes}

    chosen = sheets.joined(all_sheets)
    title = f"{config.dataset} {split}"
    write_json(result, folder / f"{name}.json")
    for kind, some in chosen.items():
        rows = [to_picture(*sample) for sample in some]
        sheet = render.contact_sheet(rows, f"{title}: {kind} samples, step {checkpoint.step}")
        render.save(sheet, folder / f"{name}-{kind}.png")
    for number, sample in enumerate(chosen["random"][: config.evaluation_attention_sheets], start=1):
        sheet = attention_sheet(
            model, checkpoint.variables, reader, sample, f"{title}: attention, step {checkpoint.step}"
        )
        render.save(sheet, folder / f"{name}-attention-{number}.png")
    published = config.published if split != "train" else ()  # they are those of what is evaluated
    print(format_table({"all": result, **result["groups"]}, published))
    if scoring.unscored:
        print(f"{scoring.unscored} answers are not scored: their truth is not published, or can't be read.")
    if notes:
        print("The data are not complete, or not as the data set's source has them (report.json beside the records):")
    for reason, number in result["notes"].items():
        print(f"  {number} x {reason}")
    if scoring.files:
        print(f"For the benchmark's own scorer: {', '.join(f'{folder}/{file}' for file in scoring.files)}.")
    print(f"Scores: {folder}/{name}.json; pictures: {name}-*.png beside it.")
    return result


def reader_for(checkpoint: Checkpoint, config: ConfigDict) -> SentenceEncoder:
    """What reads the sentences of a data set.

    The checkpoint's own words, or those of config.word_vectors too for a data set that it was not trained on; the
    stored features of a frozen transformer; else the tokens of one.

    Raises:
      UserError: the source is missing, or its vectors are not those that the model was trained with.
    """
    own, tokens = checkpoint.sentence_encoder, load_report(config.data_dir, config.dataset)["tokens"]
    if isinstance(own, WordVectors) and (not own.words or checkpoint.config.dataset != config.dataset):
        return extend(own, config.word_vectors, tokens)
    _, unknown = own.coverage(tokens)
    if unknown:
        first = " ".join(map(repr, unknown[:10]))
        print(f"{len(unknown)} of {len(tokens)} words are not known to the checkpoint, read as blanks: {first}")
    if not is_frozen(config):
        return own
    return run_sequentially(lambda: precomputed_features(config, checkpoint.variables, own))


class Sample(NamedTuple):
    """Sentence `index` of an example, its prediction (h, w) bool, and the IoU of that, None without truth."""

    example: EvaluationExample
    index: int
    prediction: np.ndarray
    iou: float | None


class SampleSelector:
    """Keeps the best, the worst and some random samples: as many as the sheets hold, however many there are.

    Args:
      size: samples on each sheet.
      seed: of the random choice.
      process: which part of the samples it sees.
    """

    def __init__(self, size: int, seed: int, process: int = 0) -> None:
        self._size, self._process, self._count = size, process, 0
        self._rng = np.random.default_rng((seed, process))
        self._heaps: dict[str, list] = {"best": [], "worst": [], "random": []}

    def add(self, sample: Sample) -> None:
        """Considers a sample."""
        self._count += 1
        keys = {"random": self._rng.random()}
        if sample.iou is not None:
            keys |= {"best": sample.iou, "worst": -sample.iou}
        for kind, key in keys.items():
            heap = self._heaps[kind]
            if len(heap) < self._size or key > heap[0][0]:
                # Process and count break ties, since pictures can't be compared.
                entry = (key, -self._process, -self._count, sample)
                (heapq.heappush if len(heap) < self._size else heapq.heapreplace)(heap, entry)

    def joined(self, all_sheets: Sequence[SampleSelector]) -> dict[str, list[Sample]]:
        """Kind of sheet -> its samples, the most extreme first, of what all processes kept, this one among them."""
        chosen = {}
        for kind in self._heaps:
            entries = heapq.nlargest(self._size, (entry for sheets in all_sheets for entry in sheets._heaps[kind]))
            if entries:
                chosen[kind] = [sample for *_, sample in entries]
        return chosen


def to_picture(example: EvaluationExample, index: int, prediction: np.ndarray, iou: float | None) -> render.Example:
    """A sample as a row of a contact sheet."""
    sentence = example.sentences[index]
    group = f" {sentence.group}" if sentence.group else ""
    return render.Example(
        frame=example.original_frame,
        earlier_frame=example.original_earlier_frame,
        mask=example.masks[index],
        prediction=prediction,
        sentence=sentence.text,
        iou=iou,
        name=f"{example.video}/{example.frame_index}/{sentence.instance}{group}",
    )


def attention_sheet(
    model: LBDT, variables: dict[str, Any], reader: SentenceEncoder, sample: Sample, title: str
) -> Image.Image:
    """What the network attended to when it answered a sample, see render.attention_sheet."""
    asked, index = sample.example, sample.index
    words, word_mask = asked.words[index], asked.word_mask[index]
    explanation = explain(model, variables, asked.frame, asked.earlier_frame, words, word_mask)
    tokens = reader.tokens(asked.sentences[index].text, len(words))
    return render.attention_sheet(to_picture(*sample), tokens, explanation, title)


def pictures(predictor: BatchedPredictor, examples: Iterable[EvaluationExample]) -> list[render.Example]:
    """The first sentence of every example, as rows of a contact sheet."""
    rows = []
    for example, logits in predictor.segment(examples, model_inputs):
        prediction = resize_logits(logits[0], example.masks[0].shape) > 0
        iou = StandardScores().add(prediction, example.masks[0], foreground_score(logits[0]))
        rows.append(to_picture(example, 0, prediction, iou))
    return rows
