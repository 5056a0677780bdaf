"""The network equals the published one at every intermediate value (tests/golden/forward_*.npz)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from paths import GOLDEN
from published import intermediate_values, published_inputs, published_model

from lbdt_jax.models import duplex_transfer, layers
from lbdt_jax.models.positions import pixel_positions

pytestmark = pytest.mark.usefixtures("fast_compilation")

CASES = [
    ("lbdt1_r50", "base"),
    ("lbdt1_r50", "rect"),
    ("lbdt1_r50", "small"),
    ("lbdt4_r50", "base"),
    ("lbdt4_r50", "rect"),
    ("lbdt4_r50", "small"),
    ("lbdt4_r101", "base"),
]
#: The default suite has LBDT-4 at the base size, LBDT-1 at the rectangular one, and both at the small one.
SLOW_IN_FLOAT32 = (("lbdt1_r50", "base"), ("lbdt4_r50", "rect"), ("lbdt4_r101", "base"))


def errors(variant: str, case: str, activations: dict[str, np.ndarray]) -> dict[str, tuple[float, float, float]]:
    """Activation -> its largest error, rms error and largest error of its statistics, all divided by its rms.

    In float64, the largest error is what exceeds the rounding of the stored float32. golden/README.md explains the
    bounds.
    """
    golden = np.load(GOLDEN / f"forward_{variant}_{case}.npz")
    names = {key.rpartition(":")[0] for key in golden.files}
    assert names <= activations.keys()
    result = {}
    for name in names:
        # The published code squeezes the batch axis away at batch 1.
        assert activations[name].squeeze().shape == tuple(size for size in golden[f"{name}:shape"] if size > 1)
        value = activations[name].reshape(-1).astype(np.float64)
        mean, std, mean_abs, low, high = golden[f"{name}:stats"]
        rms = np.hypot(mean, std)
        statistics = [value.mean(), value.std(), np.abs(value).mean(), value.min(), value.max()]
        statistics_error = np.abs(np.array(statistics) - [mean, std, mean_abs, low, high]).max()
        full = f"{name}:full" in golden.files
        expected = golden[f"{name}:full" if full else f"{name}:val"].reshape(-1).astype(np.float64)
        error = np.abs((value if full else value[golden[f"{name}:idx"]]) - expected)
        result[name] = (
            np.max(error - (1e-6 * np.abs(expected) if activations[name].dtype == np.float64 else 0)) / rms,
            np.sqrt(np.mean(error**2)) / rms,
            statistics_error / rms,
        )
    return result


def check(variant: str, case: str, dtype: str, activations: dict[str, np.ndarray]) -> None:
    """Fails with a list of the activations whose errors are too large."""
    bounds = {"float32": (1e-4, 2e-5, 1e-4), "float64": (2e-6, 2e-6, 1e-10)}[dtype]
    all_errors = errors(variant, case, activations)
    wrong = {name: values for name, values in all_errors.items() if not np.all(np.array(values) <= bounds)}
    assert not wrong, f"not within the bounds: {sorted(wrong)}"


@pytest.mark.parametrize(
    ("variant", "case"),
    [pytest.param(*case, marks=pytest.mark.slow if case in SLOW_IN_FLOAT32 else ()) for case in CASES],
)
def test_equals_published_in_float32(variant: str, case: str) -> None:
    model, variables = published_model(variant, "float32")
    check(variant, case, "float32", intermediate_values(model, variables, published_inputs(case, "float32")))


@pytest.mark.parametrize(
    ("variant", "case"), [pytest.param(*case, marks=() if case[1] == "small" else pytest.mark.slow) for case in CASES]
)
def test_equals_published_in_float64(variant: str, case: str) -> None:
    with jax.enable_x64(True):
        model, variables = published_model(variant, "float64")
        check(variant, case, "float64", intermediate_values(model, variables, published_inputs(case, "float64")))


# -- a broken model fails the checks above


def drop_padding_mask(monkeypatch, variables, inputs):
    inputs["word_mask"] = np.ones_like(inputs["word_mask"])


def swap_columns_and_rows(monkeypatch, variables, inputs):
    def swapped(height, width, channels):
        return np.roll(pixel_positions(height, width, channels), channels // 2, axis=-1)

    monkeypatch.setattr(duplex_transfer, "pixel_positions", swapped)


def pad_as_xla_does(monkeypatch, variables, inputs):
    conv = layers.Conv
    monkeypatch.setattr(
        layers, "Conv", lambda *arguments, **options: conv(*arguments, **(options | {"padding": "SAME"}))
    )


def use_different_weights_for_the_directions(monkeypatch, variables, inputs):
    shared = duplex_transfer.LanguageBridge.__call__
    other = {"params": variables["params"]["duplex_transfer5"]["bridges_0"]}

    def unshared(self, *arguments):
        bridge = duplex_transfer.LanguageBridge(self.width, self.heads, self.dropout, self.dtype, parent=None)
        monkeypatch.setattr(duplex_transfer.LanguageBridge, "__call__", shared)
        to_temporal = bridge.apply(other, *arguments)[1]
        result = shared(self, *arguments).at[1].set(to_temporal)
        monkeypatch.setattr(duplex_transfer.LanguageBridge, "__call__", unshared)
        return result

    monkeypatch.setattr(duplex_transfer.LanguageBridge, "__call__", unshared)


def reorder_lstm_gates(monkeypatch, variables, inputs):
    encoder = variables["params"]["text_encoder"]
    for name, value in encoder.items():
        i, f, g, o = np.split(value, 4, axis=-1)
        encoder[name] = np.concatenate([i, g, f, o], axis=-1)


@pytest.mark.parametrize(
    "break_model",
    [
        drop_padding_mask,
        swap_columns_and_rows,
        pad_as_xla_does,
        use_different_weights_for_the_directions,
        reorder_lstm_gates,
    ],
)
def test_a_broken_model_fails(break_model, monkeypatch) -> None:
    model, variables = published_model("lbdt1_r50", "float32")
    inputs = dict(published_inputs("small", "float32"))
    break_model(monkeypatch, variables, inputs)
    with pytest.raises(AssertionError, match="logits"):
        check("lbdt1_r50", "small", "float32", intermediate_values(model, variables, inputs))
