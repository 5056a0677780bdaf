"""A transformer as text encoder in training, resuming, evaluation, prediction and export."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import pytest
from fake_refcoco import write_refcoco
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from ml_collections import ConfigDict
from paths import ROOT
from tiny import tiny_config
from tiny_transformer import write_bert

import lbdt_jax
from configs import base, shapes_minilm
from input_pipeline.errors import UserError
from input_pipeline.moving_shapes.raw_layout import write_raw
from input_pipeline.moving_shapes.scenes import make_scene
from input_pipeline.pipeline import distinct_sentences, evaluation_examples, steps_per_epoch, training_batches
from input_pipeline.prepare import prepare
from input_pipeline.text.encoders import PrecomputedFeatures
from input_pipeline.text.mirroring import mirror_sentence
from lbdt_jax import export
from lbdt_jax.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from lbdt_jax.convert.__main__ import extract_weights
from lbdt_jax.convert.names import to_torch
from lbdt_jax.demo.checks import unknown_words
from lbdt_jax.evaluate import evaluate, sentence_encoder_for
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, shard_batch
from lbdt_jax.predict import describe_model
from lbdt_jax.step import initial_state, initial_variables, is_frozen, make_model, make_train_step, split_params
from lbdt_jax.text_features import open_text_encoder, precomputed_features, with_transformer
from lbdt_jax.train import device_fields, train
from lbdt_jax.workdir import check_and_save_config

pytestmark = pytest.mark.usefixtures("fast_compilation")

SCENES = {"train": 3, "validation": 1, "test": 2, "unseen_words": 1}
STEPS = 4
SENTENCES = 8  # for each frame pair


@pytest.fixture(scope="module")
def config(fast_compilation: None, tmp_path_factory: pytest.TempPathFactory) -> ConfigDict:
    """A run of four steps with a frozen tiny BERT on the records of a few scenes."""
    data = tmp_path_factory.mktemp("data")
    write_raw(data / "raw" / "moving_shapes", scenes=SCENES, workers=1)
    write_bert(data / "bert")
    config = tiny_config()
    config.update(
        dataset="moving_shapes",
        data_dir=str(data),
        text_encoder=str(data / "bert"),
        max_words=20,
        learning_rate=1e-3,
        learning_rate_drops=(),
        log_every_steps=1,
        picture_every_steps=2,
        checkpoint_every_steps=2,
        contact_sheet_samples=2,
        evaluation_frames=1,
        evaluation_sentences=3,
        evaluation_attention_sheets=1,
    )
    prepare(config.dataset, config.raw, config.data_dir, config.frame_interval)
    config.epochs = STEPS / steps_per_epoch(config)
    return config


@pytest.fixture(scope="module")
def frozen(config: ConfigDict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of that run."""
    workdir = tmp_path_factory.mktemp("frozen")
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def checkpoint(frozen: Path) -> Checkpoint:
    return load_checkpoint(frozen)


@pytest.fixture(scope="module")
def start(config: ConfigDict) -> dict[str, Any]:
    """The variables before the first step, with random parameters in place of the BERT's."""
    filled, _, _ = open_text_encoder(config, [])
    return jax.device_get(initial_variables(make_model(filled), filled, 0))


@pytest.fixture(scope="module")
def predict(checkpoint: Checkpoint) -> Callable[..., np.ndarray]:
    """(frames, earlier frames, words, masks) -> logits of the trained model; compiled once for all tests.

    Every call is padded to `SENTENCES` rows, which do not influence each other.
    """
    apply = jax.jit(make_model(checkpoint.config).apply)

    def predict(*inputs: np.ndarray) -> np.ndarray:
        padded = [np.resize(array, (SENTENCES, *array.shape[1:])) for array in inputs]
        return np.asarray(apply(checkpoint.variables, *padded))[: len(inputs[0])]

    return predict


def finetuning(config: ConfigDict) -> ConfigDict:
    """The configuration with a transformer that is trained."""
    config = config.copy_and_resolve_references()
    config.text_encoder_learning_rate = 1e-5
    return config


# -- training


def test_frozen_parameters_stay_and_have_no_moments(
    config: ConfigDict, frozen: Path, checkpoint: Checkpoint, start: dict[str, Any]
) -> None:
    _, _, params = open_text_encoder(config, [])
    jax.tree.map(np.testing.assert_array_equal, checkpoint.variables["params"]["text_encoder"]["transformer"], params)
    trained, _ = split_params(checkpoint.variables["params"], frozen=True)
    for name, array in flatten_dict(trained, sep="/").items():
        assert np.abs(array - flatten_dict(start["params"], sep="/")[name]).max() > 0, name
    folder = frozen / "checkpoints" / str(STEPS)
    metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert "tokenizer" in metadata and metadata["words"] == []
    moments = (folder / "optimizer_state" / "_METADATA").read_text()
    assert "text_encoder" in moments and "project" in moments and "transformer" not in moments


def test_finetuned_parameters_have_their_own_learning_rate(config: ConfigDict, start: dict[str, Any]) -> None:
    config, tokenizer, transformer = open_text_encoder(finetuning(config), [])
    mesh = make_mesh(jax.devices()[:1])
    model, optimizer = make_model(config), make_optimizer(config, 1000)
    variables = with_transformer(start, transformer)
    state = replicate(initial_state(variables, optimizer, is_frozen(config)), mesh)
    batch = next(training_batches(config, tokenizer))
    assert batch["words"].shape == (8, 20) and batch["words"].dtype == np.int32
    assert batch["words"].max() < tokenizer.vocabulary_size and not batch["words"][~batch["word_mask"]].any()
    before = flatten_dict(jax.device_get(state.params), sep="/")
    state, metrics = make_train_step(model, optimizer, config, mesh)(state, shard_batch(device_fields(batch), mesh))
    assert np.isfinite(metrics["loss"])
    change = {
        name: float(np.abs(array - before[name]).max()) for name, array in flatten_dict(state.params, sep="/").items()
    }
    transformer_change = {name: size for name, size in change.items() if name.startswith("text_encoder/transformer/")}
    assert len(transformer_change) == 5 + 16 * 2
    # AdamW's first step is as large as the learning rate wherever there is a gradient, and never larger.
    assert all(0 < size < 1.1e-5 for size in transformer_change.values()), transformer_change
    assert max(transformer_change.values()) > 0.9e-5
    # config.learning_rate is that of everything else, also in the text encoder. (Biases of keys have no gradient.)
    kernels = {n: size for n, size in change.items() if n.endswith("/kernel") and n not in transformer_change}
    assert "text_encoder/project/kernel" in kernels
    assert all(0.9e-3 < size < 1.1e-3 for size in kernels.values()), kernels


def test_precomputed_features_equal_those_of_the_transformer(
    config: ConfigDict, checkpoint: Checkpoint, predict: Callable[..., np.ndarray]
) -> None:
    features = sentence_encoder_for(checkpoint, trained_config(checkpoint, config))
    assert isinstance(features, PrecomputedFeatures) and features.size == 12
    sentences = distinct_sentences(config)
    assert len(set(sentences)) == len(sentences) > 30
    examples = list(evaluation_examples(config, "test", features))
    for example in examples:
        tokens = [checkpoint.sentence_encoder.encode(sentence.text, 20) for sentence in example.sentences]
        ids, masks = map(np.stack, zip(*tokens, strict=True))
        np.testing.assert_array_equal(masks, example.word_mask)
        assert example.words.dtype == np.float32 and not example.words[~masks].any()
        frames = np.repeat(example.frame[None], len(ids), 0), np.repeat(example.earlier_frame[None], len(ids), 0)
        logits = [predict(*frames, words, masks) for words in (ids, example.words)]
        np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
    assert len(examples) == 4


def trained_config(checkpoint: Checkpoint, config: ConfigDict) -> ConfigDict:
    """The checkpoint's configuration, to which training has added the sizes of the transformer, for our data_dir."""
    filled = checkpoint.config.copy_and_resolve_references()
    filled.data_dir = config.data_dir
    return filled


def test_features_are_computed_once_and_errors_name_broken_ones(config: ConfigDict, checkpoint: Checkpoint) -> None:
    filled, tokenizer = trained_config(checkpoint, config), checkpoint.sentence_encoder
    (folder,) = (Path(config.data_dir) / "moving_shapes").glob("*/text_features/*")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    features = precomputed_features(filled, checkpoint.variables, tokenizer)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(UserError, match=f"{folder} has no features of 'the dog' with up to 20 tokens. Delete the"):
        features.encode("the dog", 20)
    filled.max_words = 19
    (sentence, *_) = distinct_sentences(config)
    shorter = precomputed_features(filled, checkpoint.variables, tokenizer)
    assert shorter.encode(sentence, 19)[0].shape == (19, 12) and len(list(folder.parent.iterdir())) == 2
    filled.max_words = 18
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # has the effect of a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(UserError, match=f"can't be written to {folder.parent}/.*: File too large"):
            precomputed_features(filled, checkpoint.variables, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert len(list(folder.parent.iterdir())) == 2
    broken = folder.with_name("broken")
    shutil.copytree(folder, broken)
    (broken / "features.npy").write_bytes((folder / "features.npy").read_bytes()[:-48])
    with pytest.raises(UserError, match=f"features in {broken} are incomplete .*Delete the folder"):
        PrecomputedFeatures(broken, tokenizer)


def test_features_include_mirrored_sentences(config: ConfigDict, checkpoint: Checkpoint, tmp_path: Path) -> None:
    filled, tokenizer = trained_config(checkpoint, config), checkpoint.sentence_encoder
    shutil.copytree(Path(config.data_dir) / "moving_shapes", tmp_path / "moving_shapes")
    filled.update(data_dir=str(tmp_path), augment_flip=1.0)
    features = precomputed_features(filled, checkpoint.variables, tokenizer)  # beside those without mirrored ones
    mirrored = {"left", "right", "leftmost", "rightmost", "leftward", "rightward"}
    used: set[str] = set()
    for batch in itertools.islice(training_batches(filled, features), steps_per_epoch(filled)):
        for name, words, mask in zip(batch["name"], batch["words"], batch["word_mask"], strict=True):
            sentence = name.split(": ")[1]
            expected = mirror_sentence(sentence)
            np.testing.assert_array_equal(mask, tokenizer.encode(expected, 20)[1])
            np.testing.assert_array_equal(words, features.encode(expected, 20)[0])
            used |= set(expected.rstrip(".").split()) & mirrored if expected != sentence else set()
    assert used


def test_features_of_several_datasets(config: ConfigDict, checkpoint: Checkpoint, tmp_path: Path) -> None:
    filled, tokenizer = trained_config(checkpoint, config), checkpoint.sentence_encoder
    source, without_features = Path(config.data_dir) / "moving_shapes", shutil.ignore_patterns("text_features")
    shutil.copytree(source, tmp_path / "moving_shapes", ignore=without_features)
    prepare("refcoco", write_refcoco(tmp_path / "raw"), tmp_path)
    filled.update(data_dir=str(tmp_path), training_datasets=(("moving_shapes", 1.0), ("refcoco", 1.0)))
    features = precomputed_features(filled, checkpoint.variables, tokenizer)
    assert len(list(tmp_path.glob("*/*/text_features/*"))) == 2
    (batch,) = itertools.islice(training_batches(filled, features), 1)
    assert {name.split("/")[0] for name in batch["name"]} == {"moving_shapes", "refcoco"}
    for name, words in zip(batch["name"], batch["words"], strict=True):
        np.testing.assert_array_equal(words, features.encode(name.split(": ")[1], 20)[0])


@pytest.mark.slow
def test_resuming_a_frozen_run_gives_the_same_variables(
    config: ConfigDict, frozen: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(frozen, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    train(config, tmp_path / "run")
    resumed = load_checkpoint(tmp_path / "run")
    assert resumed.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, checkpoint.variables)


def test_a_run_does_not_resume_with_another_tokenizer_or_rate(config: ConfigDict, frozen: Path, tmp_path: Path) -> None:
    shutil.copytree(config.text_encoder, tmp_path / "bert")
    tokenizer = json.loads((tmp_path / "bert" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = finetuning(config)
    other.text_encoder = str(tmp_path / "bert")
    other, _, _ = open_text_encoder(other, [])
    with pytest.raises(CheckpointError) as error:
        check_and_save_config(other, frozen / "config.json")
    different = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert different == ["text_encoder", "text_encoder_learning_rate", "tokenizer"]


def test_runs_without_the_fields_of_text_encoders_resume(config: ConfigDict, tmp_path: Path) -> None:
    old = json.loads(base.get_config().to_json())
    for name in ("text_encoder", "tokenizer", "text_encoder_learning_rate"):
        del old[name]
    del old["model"]["transformer"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    check_and_save_config(base.get_config(), tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["text_encoder"] == "glove_lstm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_words": 25}, "config.max_words is 25; .*bert reads 3 to 24 tokens"),
        ({"max_words": 2}, "config.max_words is 2; .*bert reads 3 to 24 tokens"),
        ({"text_encoder": "no_such_model"}, "no installed package 'no_such_model'. pip install no-such-model"),
    ],
)
def test_configuration_errors_are_raised_before_anything_is_written(
    config: ConfigDict, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = config.copy_and_resolve_references()
    config.update(changes)
    with pytest.raises(UserError, match=message):
        train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- from the checkpoint alone


def test_evaluation_and_prediction_need_the_checkpoint_only(config: ConfigDict, frozen: Path, tmp_path: Path) -> None:
    away = Path(config.text_encoder).with_name("away")
    published = config.copy_and_resolve_references()
    published.text_encoder = "glove_lstm"  # the checkpoint takes precedence
    Path(config.text_encoder).rename(away)
    try:
        segmenter = lbdt_jax.load(frozen)
        result = evaluate(segmenter.checkpoint, published, tmp_path)
        frames = make_scene(0, "test", 0).frames[:2]
        masks, scores = segmenter.segment(frames, ["the red circle moving left", "a flurbl that's on top"])
    finally:
        away.rename(config.text_encoder)
    assert result["samples"] == 2 * 2 * 8 and (tmp_path / "evaluation/moving_shapes-test-attention-1.png").exists()
    assert masks.shape == (2, 2, 72, 96) and np.isfinite(scores).all()


def test_tokens_and_unknown_words_are_reported(config: ConfigDict, checkpoint: Checkpoint) -> None:
    segmenter = Segmenter(checkpoint)
    assert segmenter.tokens("the red disc") == ["[CLS]", "the", "red", "disc", "[SEP]"]
    assert segmenter.unknown_words(["the 😀 disc", "the flurbl"]) == ["😀"]
    assert unknown_words(segmenter, ("the 😀 disc",)) == ["😀"]  # as the demo page calls it
    with pytest.raises(UserError, match="The model knows no word of “😀”.$"):
        unknown_words(segmenter, ("😀",))
    assert f"the text encoder {config.text_encoder} of" in describe_model(checkpoint)
    with pytest.raises(UserError, match="knows no word of sentence 2, '😀'.$"):
        segmenter.encode(["the disc", "😀"])
    with pytest.raises(UserError, match="Sentence 1 is empty"):
        segmenter.encode(["\x07 "])
    with pytest.raises(UserError, match="it has no use for word vectors"):
        Segmenter(checkpoint, "random:6")


def test_exported_programs_take_token_ids(
    checkpoint: Checkpoint, predict: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    export.write(checkpoint, tmp_path / "exported")
    folder = tmp_path / "exported"
    described = json.loads((folder / "model.json").read_text())
    assert described["programs"]["segment"]["inputs"][2]["words"] == "int32[S, 20]"
    assert "tokenizer.json" in described["sentence"] and not (folder / "vocabulary.npz").exists()
    rng = np.random.default_rng(0)
    frames = {name: rng.integers(0, 256, (2, 64, 64, 3), np.uint8) for name in ("frame", "earlier_frame")}
    sentences = ["the red circle", "a " * 60, ""]
    _, _, example = export.__doc__.partition("    import tokenizers\n")
    names = {"folder": folder, "np": np}
    exec("import tokenizers\n" + "\n".join(line[4:] for line in example.splitlines()), names)
    words, mask = map(np.stack, zip(*map(names["encode_sentence"], sentences), strict=True))
    ours = [checkpoint.sentence_encoder.encode(sentence, 20) for sentence in sentences]
    np.testing.assert_array_equal(words, [ids for ids, _ in ours])
    np.testing.assert_array_equal(mask, [tokens for _, tokens in ours])
    weights = dict(np.load(folder / "weights.npz"))
    programs = ((folder / file).read_bytes() for file in ("encode.jax", "answer.jax"))
    encode, segment = map(jax_export.deserialize, programs)
    features = encode.call(weights, frames)
    frame_of_sentence = np.array([0, 1, 1], np.int32)
    logits = segment.call(
        weights, features, {"words": words, "word_mask": mask, "frame_of_sentence": frame_of_sentence}
    )
    expected_logits = predict(*(frames[name][frame_of_sentence] for name in frames), words, mask)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-4)

    export.write(checkpoint, tmp_path / "onnx", "onnx")
    sessions = [onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx") for name in ("encode", "segment")]
    names = [output.name for output in sessions[0].get_outputs()]
    inputs = {"words": words, "word_mask": mask, "frame_of_sentence": frame_of_sentence}
    inputs |= dict(zip(names, sessions[0].run(None, frames), strict=True))
    np.testing.assert_allclose(sessions[1].run(None, inputs)[0], expected_logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "onnx" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_conversion_to_pytorch_is_rejected_and_weights_can_be_extracted(
    frozen: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a transformer, which the published code does not have"):
        to_torch(checkpoint.variables)
    extract_weights(frozen, tmp_path / "weights")
    weights = load_checkpoint(tmp_path / "weights")
    assert weights.sentence_encoder.text == checkpoint.sentence_encoder.text
    jax.tree.map(np.testing.assert_array_equal, weights.variables, checkpoint.variables)


def test_prediction_needs_no_transformers_and_glove_no_tokenizers(frozen: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['transformers', 'tensorflow', 'torch']))\n"  # `import` raises ImportError
        "import lbdt_jax\n"
        f"lbdt_jax.load({str(frozen)!r}).encode(['the red circle'])\n"
        "sys.modules['tokenizers'] = None\n"
        "lbdt_jax.load().encode(['the red circle'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_error_without_the_library_tokenizers(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CheckpointError, match=f"{frozen}.*library tokenizers: pip install -r requirements.txt"):
        load_checkpoint(frozen)


def test_the_shipped_configuration() -> None:
    assert shapes_minilm.get_config().text_encoder_learning_rate == 0.0
    assert shapes_minilm.get_config("finetuned").text_encoder_learning_rate > 0
    with pytest.raises(ValueError, match="shapes_minilm.py:tuned is unknown; choose shapes_minilm.py:frozen or"):
        shapes_minilm.get_config("tuned")
