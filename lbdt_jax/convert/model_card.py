"""The model card of a folder to share: what was trained on what and how, the scores, and how to use it.

Its header is that of the Hugging Face Hub, https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import configs
from input_pipeline.datasets import training_datasets
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.checkpoint_checks import by_name
from lbdt_jax.checkpoint_folder import checkpoint_name
from lbdt_jax.cli import read_json_or_none
from lbdt_jax.config import encoder_name
from lbdt_jax.hub import import_hub
from lbdt_jax.metrics import flat_scores

#: Limit for a file of scores. validation.json has about 10 kB for each validation.
MAX_JSON_BYTES = 256 * 2**20
TAGS = ("referring-video-object-segmentation", "referring-expression-segmentation", "video", "jax", "flax")
#: Measures in the header, where a few are shown.
MAIN_MEASURES = ("mean_iou", "overall_iou", "mean_precision", "coco_map", "j_and_f")
#: Beginnings of the names of fields that don't change what is learned, or that training fills in.
NOT_IN_COMMAND = (
    *("data_dir", "raw", "checkpoint", "keep_checkpoints", "evaluation", "evaluated", "contact_sheet", "published"),
    *("cpu_devices", "log_every", "picture_every", "validation", "best_measure", "decoded_cache", "tokenizer"),
    "model.transformer",
)


class Scores(NamedTuple):
    """The scores of this very checkpoint on a split.

    Attributes:
      dataset, split: what was scored.
      samples: how many sentences; None if that is not known.
      measures: protocol -> measure -> score, a fraction.
    """

    dataset: str
    split: str
    samples: int | None
    measures: dict[str, dict[str, float]]


def make_card(
    checkpoint: Checkpoint, config: ConfigDict, without_local_paths: Callable[[ConfigDict], ConfigDict]
) -> str:
    """The text of README.md.

    Args:
      checkpoint: the model. Scores are read from the files in its WORKDIR.
      config: of its training, without paths of this machine.
      without_local_paths: makes such a configuration of any.
    """
    scores = list(_find_scores(checkpoint))
    # What a converted model was trained on isn't known.
    datasets = training_datasets(config) if checkpoint.step else []
    sections = [
        _header(config, datasets, scores),
        " on ".join([f"# {_name(config)}", *([_listed(datasets)] if datasets else [])]),
        "Referring video object segmentation: given a video and a sentence, this model predicts the mask of the object "
        "that the sentence describes, in every frame. It is an LBDT ([Ding et al., "
        "2022](https://arxiv.org/abs/2206.03789)) of `lbdt_jax`, in JAX.",
        "## Use",
        "`MODEL` is this folder, or the name of its repository on the Hugging Face Hub.",
        '```\npython -m lbdt_jax.predict --checkpoint=MODEL --video=clip.mp4 --text="..." --output=output\n```',
        '```python\nimport lbdt_jax\n\nmasks, scores = lbdt_jax.load("MODEL").segment(frames, ["..."], rate=30)\n```',
        "## Training",
        "\n".join(f"- {line}" for line in _facts(checkpoint, config)),
        *_command(checkpoint, config, without_local_paths),
        "## Scores",
        *([_table(row) for row in scores] or ["Not evaluated yet."]),
        *_best(checkpoint),
    ]
    return "\n\n".join(sections) + "\n"


def _name(config: ConfigDict) -> str:
    return f"LBDT-{config.model.transfer_layers} with {encoder_name(config.model)}"


def _listed(names: list[str]) -> str:
    return ", ".join(map(_code, names))


def _header(config: ConfigDict, datasets: list[str], scores: list[Scores]) -> str:
    """The header in yaml. It names no license: only who shares the weights knows it."""
    hub = import_hub()
    results = [
        hub.EvalResult(
            task_type="image-segmentation",
            task_name="Referring video object segmentation",
            dataset_type=row.dataset,
            dataset_name=row.dataset,
            dataset_split=row.split,
            metric_type=measure,
            metric_name=f"{measure}, protocol {protocol}",
            metric_value=round(measures[measure], 4),
        )
        for row in scores
        for protocol, measures in row.measures.items()
        for measure in MAIN_MEASURES
        if measure in measures
    ]
    data = hub.ModelCardData(
        library_name="lbdt_jax",
        pipeline_tag="image-segmentation",
        tags=list(TAGS),
        datasets=datasets or None,
        language="en",
        model_name=_name(config) if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _facts(checkpoint: Checkpoint, config: ConfigDict) -> Iterator[str]:
    """What was trained, on what, and for how long."""
    parameters = sum(array.size for array in by_name(checkpoint.variables["params"]).values())
    height, width = config.image_size
    yield f"{_name(config)}, {parameters / 1e6:.2f} million parameters, frames of {width}x{height} pixels"
    if config.text_encoder == "glove_lstm":
        yield f"text encoder: LSTM over word vectors, {_code(config.word_vectors)}"
    else:
        state = "fine-tuned" if config.text_encoder_learning_rate else "frozen"
        yield f"text encoder: {_code(config.text_encoder)}, {state}"
    if checkpoint.step:
        datasets = _listed(training_datasets(config))
        yield f"trained on {datasets}: {checkpoint.step:,} steps of {config.batch_size} samples"
        yield f"initial weights: {_code(config.initial_weights) if config.initial_weights else 'random'}"
    else:
        yield "converted from a file of PyTorch, which does not say what it was trained on"
    kinds = {"trained": "as the optimizer left them", "ema": f"their moving average, decay {config.ema_decay:g}"}
    yield f"weights: {kinds[checkpoint.weights]}"


def _command(
    checkpoint: Checkpoint, config: ConfigDict, without_local_paths: Callable[[ConfigDict], ConfigDict]
) -> Iterator[str]:
    """The command that trains such a model: the most similar configuration, and a flag for each difference."""
    if not checkpoint.step:
        return
    wanted, candidates = _flat(config), []
    for file in pkgutil.iter_modules(configs.__path__):
        if file.name == "base":
            continue
        module = importlib.import_module(f"configs.{file.name}")
        for variant in ("", *getattr(module, "VARIANTS", ())):
            default = _flat(without_local_paths(module.get_config(variant) if variant else module.get_config()))
            different = {name: value for name, value in wanted.items() if default.get(name) != value}
            name = f"{file.name}.py:{variant}" if variant else f"{file.name}.py"
            candidates.append(("dataset" in different, len(different), name, different))
    *_, name, different = min(candidates, key=lambda candidate: candidate[:3])
    flags = [f"--config.{field}={shlex.quote(str(value))}" for field, value in different.items()]
    yield "\n".join(["```", " \\\n    ".join([f"python -m lbdt_jax.main --config=configs/{name}", *flags]), "```"])


def _flat(config: ConfigDict) -> dict[str, Any]:
    """The fields that determine what is learned, such as "model.dropout"; lists and tuples are the same."""
    fields: dict[str, Any] = {}
    for name, value in json.loads(config.to_json()).items():
        group = value if isinstance(value, dict) else None
        fields |= {f"{name}.{key}": v for key, v in group.items()} if group is not None else {name: value}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if not name.startswith(NOT_IN_COMMAND)
    }


# -- Scores


def _find_scores(checkpoint: Checkpoint) -> Iterator[Scores]:
    """The scores of a checkpoint among those that evaluations and validations have left in its WORKDIR."""
    workdir, dataset = _workdir(checkpoint), checkpoint.config.dataset
    if workdir is None:
        return
    name = checkpoint_name(checkpoint.path, workdir)
    for path in [*sorted((workdir / "evaluation").glob("*.json")), workdir / "scores.json"]:
        result = read_json_or_none(path, MAX_JSON_BYTES)
        # Of a WORKDIR's own checkpoints, evaluations name the folder in it; older versions named the step alone.
        own = isinstance(result, dict) and result.get("checkpoint", name) == name
        if own and _is_of(result, "checkpoint_step", checkpoint):
            yield from _scores(result, result.get("dataset"), result.get("split"))
    history = read_json_or_none(workdir / "validation.json", MAX_JSON_BYTES)
    for entry in history if isinstance(history, list) else ():
        if isinstance(entry, dict) and _is_of(entry, "step", checkpoint):
            yield from _scores(
                entry.get("scores"), entry.get("dataset", dataset), f"{entry.get('split')}, while training"
            )


def _is_of(result: Mapping[str, Any], field: str, checkpoint: Checkpoint) -> bool:
    return result.get(field) == checkpoint.step and result.get("weights", "trained") == checkpoint.weights


def _scores(result: Any, dataset: Any, split: Any) -> Iterator[Scores]:
    """The numbers in what an evaluation has written, if there are any."""
    measures: dict[str, dict[str, float]] = {}
    for protocol, name, value in flat_scores(result) if isinstance(result, dict) else ():
        if 0 <= value <= 1 and re.fullmatch(r"[\w@.]+", name):
            measures.setdefault(protocol, {})[name] = float(value)
    samples = result.get("samples") if isinstance(result, dict) else None
    if measures:
        yield Scores(f"{dataset}", f"{split}", samples if isinstance(samples, int) else None, measures)


def _table(scores: Scores) -> str:
    """The scores of a split in percent, a column for each protocol."""
    protocols = list(scores.measures)
    names = dict.fromkeys(name for measures in scores.measures.values() for name in measures)
    rows = [["", *(f'protocol "{protocol}"' for protocol in protocols)], ["---"] * (1 + len(protocols))]
    for name in names:
        values = [scores.measures[protocol].get(name) for protocol in protocols]
        rows.append([name, *("" if value is None else f"{100 * value:.1f}" for value in values)])
    samples = "" if scores.samples is None else f", {scores.samples:,} sentences"
    title = f"{_code(scores.dataset)}, split {_code(scores.split)}{samples}, in percent:"
    return "\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)])


def _best(checkpoint: Checkpoint) -> Iterator[str]:
    """A sentence, if this is the best checkpoint of its training."""
    workdir = _workdir(checkpoint)
    best = read_json_or_none(workdir / "checkpoints" / "best.json", MAX_JSON_BYTES) if workdir else None
    if isinstance(best, dict) and best.get("step") == checkpoint.step:
        yield f"It is the best checkpoint of its training by {_code(best.get('measure'))}."


def _workdir(checkpoint: Checkpoint) -> Path | None:
    """WORKDIR of a checkpoint's training; None if the checkpoint is not in one."""
    folder = checkpoint.path.parent
    return folder.parent if folder.name == "checkpoints" else None


def _code(text: Any) -> str:
    """A text out of a file as code in Markdown, in which nothing has a meaning."""
    return f"`{re.sub(r'[^ -_a-~]+', ' ', str(text))[:200]}`"
