"""State dicts to variables and back, and state dicts that are rejected (lbdt_jax/convert/names.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from paths import GOLDEN
from published import torch_state

from lbdt_jax.convert.names import complete, from_torch, shapes, to_torch, torch_architecture, torch_shapes, unused


@pytest.fixture
def state() -> dict[str, np.ndarray]:
    """LBDT-1's state dict, for tests to modify."""
    return dict(torch_state("lbdt1_r50"))


def test_converting_there_and_back_gives_the_same_bytes(state) -> None:
    variables = from_torch(state)
    flat = flatten_dict(variables)
    assert {path: array.shape for path, array in flat.items()} == shapes(50, 1, 300)
    back = to_torch(variables)
    kept = unused(state)
    assert len(kept) == 46 + 135 and kept.keys() | back.keys() == state.keys() and not kept.keys() & back.keys()
    for key in back:
        assert back[key].dtype == state[key].dtype and back[key].tobytes() == state[key].tobytes(), key
    assert list(complete(back, kept)) == list(state)
    again = flatten_dict(from_torch(back))
    assert again.keys() == flat.keys()
    assert all(np.array_equal(again[path], flat[path]) for path in flat)


@pytest.mark.parametrize(
    ("variant", "expected"), [("lbdt1_r50", (50, 1)), ("lbdt4_r50", (50, 4)), ("lbdt4_r101", (101, 4))]
)
def test_the_published_networks_are_recognized(variant: str, expected: tuple[int, int]) -> None:
    manifest = json.loads((GOLDEN / f"manifest_{variant}.json").read_text())
    assert torch_architecture(name for name, _, _ in manifest) == expected


@pytest.mark.parametrize("variant", ["lbdt1_r50", "lbdt4_r50", "lbdt4_r101"])
def test_order_and_shapes_are_the_published_ones(variant: str) -> None:
    manifest = json.loads((GOLDEN / f"manifest_{variant}.json").read_text())
    actual = torch_shapes(*torch_architecture(name for name, _, _ in manifest), 300)
    assert list(actual.items()) == [(name, tuple(shape)) for name, shape, _ in manifest]


def test_unused_arrays_are_filled_in(state) -> None:
    filled = complete(to_torch(from_torch(state)), {})
    assert list(filled) == list(state)
    for key, value in filled.items():
        assert (value.dtype, value.shape) == (state[key].dtype, state[key].shape), key
        if key in unused(state):
            assert (value == (1 if key.endswith((".1.weight", ".running_var")) else 0)).all(), key
        else:
            assert value.tobytes() == state[key].tobytes(), key


def test_unused_arrays_may_be_missing_but_not_of_another_shape(state) -> None:
    for key in unused(state):
        del state[key]
    from_torch(state)
    state["decoder.mask_head.bias"] = np.zeros(2, np.float32)
    state["bn1_1.num_batches_tracked"] = np.zeros((), np.float32)
    with pytest.raises(ValueError) as raised:
        from_torch(state)
    assert "bn1_1.num_batches_tracked: expected int64, found float32" in str(raised.value)
    assert "decoder.mask_head.bias: expected (1,), found (2,)" in str(raised.value)


def test_another_dtype_is_an_error(state) -> None:
    state["bn1_1.bias"] = state["bn1_1.bias"].astype(np.float16)
    with pytest.raises(ValueError, match="bn1_1.bias: expected float32, found float16"):
        from_torch(state)


def test_other_widths_are_an_error(state) -> None:
    variables = from_torch(state)
    variables["params"]["head"]["project"]["bias"] = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match=r"params/head/project/bias: expected \(1,\), found \(2,\)"):
        to_torch(variables)


def test_missing_and_unexpected_names_are_all_listed(state) -> None:
    del state["bn1_2.bias"], state["transformer.stage5.layers.0.linear1.weight"]
    state["decoder.unknown"] = state["module.extra"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError) as raised:
        from_torch(state)
    message = str(raised.value)
    assert "missing: ['bn1_2.bias', 'transformer.stage5.layers.0.linear1.weight']" in message
    assert "unexpected: ['decoder.unknown', 'module.extra']" in message


def test_both_stages_need_the_same_number_of_layers(state) -> None:
    for key in [key for key in state if key.startswith("transformer.stage4.layers.0.")]:
        state[key.replace("layers.0", "layers.1")] = state[key]
    with pytest.raises(ValueError, match=r"missing: \['transformer\.stage5\.layers\.1\."):
        from_torch(state)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("res3_1.0.conv2.weight", (128, 128, 1, 1), "(128, 128, 3, 3)"),
        ("decoder.fusion.img_txt_fc.weight", (640, 128), "(128, 640)"),
        ("transformer.stage4.layers.0.self_attn_words.in_proj_weight", (1536, 256), "(1536, 512)"),
        ("transformer.stage4.layers.0.self_attn_words.in_proj_bias", (512,), "(1536,)"),
        ("bn1_1.running_mean", (), "(64,)"),
        ("text_encoder.lstm.weight_ih_l0", (), "(2048, 1)"),
    ],
)
def test_a_wrong_shape_is_an_error(state, key: str, shape: tuple[int, ...], expected: str) -> None:
    state[key] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError) as raised:
        from_torch(state)
    first, *lines = str(raised.value).splitlines()
    assert "other shapes" in first
    assert lines == [f"  {key}: expected {expected}, found {shape}"]


def test_word_vectors_may_have_another_size(state) -> None:
    state["text_encoder.lstm.weight_ih_l0"] = np.ones((2048, 50), np.float32)
    assert from_torch(state)["params"]["text_encoder"]["input_kernel"].shape == (50, 2048)


@pytest.mark.parametrize("drop", ["res4_1.", "transformer."])
def test_another_model_is_an_error(state, drop: str) -> None:
    incomplete = {key: value for key, value in state.items() if not key.startswith(drop)}
    with pytest.raises(ValueError, match="not a state dict of LBDT"):
        from_torch(incomplete)


def test_incomplete_variables_are_an_error(state) -> None:
    variables = from_torch(state)
    del variables["params"]["head"]["project"]["bias"]
    variables["batch_stats"]["head"]["unknown"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"\['batch_stats/head/unknown', 'params/head/project/bias'\]"):
        to_torch(variables)
    with pytest.raises(ValueError, match="not a complete LBDT"):
        to_torch({"params": {"dense": {"kernel": np.zeros((2, 2))}}})
