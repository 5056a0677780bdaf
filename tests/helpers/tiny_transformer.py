"""Folders with a tiny random BERT or RoBERTa, as `transformers` saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel, RobertaModel

from input_pipeline.moving_shapes.wording import HELD_OUT_WORDS, LEXICON

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
LONGEST = 24


def write_bert(folder: Path, seed: int = 0) -> PreTrainedModel:
    """Writes a BERT with the vocabulary of Moving Shapes, except "left". Returns the torch model."""
    words = {word for phrases in LEXICON.values() for phrase in phrases for word in phrase.split()} - {"left"}
    words |= {"the", "that", "is", "not", "only", *HELD_OUT_WORDS, ",", ".", *"abcdefghijklmnopqrstuvwxyz"}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *sorted(words), *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=LONGEST, pad_token_id=0, **SIZES)
    tokens = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _write(folder, tokenizer, BertModel, config, {"tokenizer_class": "BertTokenizer", **tokens}, seed)


def write_roberta(folder: Path, kind: type[PreTrainedModel] = RobertaModel, seed: int = 0) -> PreTrainedModel:
    """Writes a RoBERTa (or XLMRobertaModel) whose tokens are bytes. Returns the torch model."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(special)
    config = kind.config_class(
        vocab_size=len(vocabulary), max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=1, **SIZES
    )
    return _write(folder, tokenizer, kind, config, {"tokenizer_class": "PreTrainedTokenizerFast"}, seed)


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    tokenizer_config: dict[str, str],
    seed: int,
) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that biases and norms are not 0 and 1
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return model
