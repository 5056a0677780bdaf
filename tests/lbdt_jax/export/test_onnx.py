"""ONNX programs run without JAX, and give the same logits (lbdt_jax/export/onnx_programs.py, jaxpr_to_onnx.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export as jax_export
from paths import ROOT
from tiny import WORD_VECTOR_SIZE, tiny_config

from input_pipeline.errors import UserError
from input_pipeline.images import resize_frame
from input_pipeline.moving_shapes.scenes import make_scene
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import DEFAULT_CHECKPOINT, export
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint
from lbdt_jax.export import jaxpr_to_onnx, onnx_programs, onnx_rules
from lbdt_jax.export.__main__ import main
from lbdt_jax.export.jaxpr_to_onnx import UnsupportedOperationError
from lbdt_jax.models.convnext import ConvNeXtStage
from lbdt_jax.step import initial_variables, make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

WORDS = load_word_vectors(f"random:{WORD_VECTOR_SIZE}", {"the", "red", "circle"})

#: (frame pairs, [(index of a frame pair, sentence)]); the first is the documented example's
CASES = [
    (1, [(0, "the red circle moving left"), (0, "the blue square")]),
    (3, [(2, "The GREEN square, left and right"), (0, "."), (0, "left"), (1, " square."), (2, "moving")]),
]

#: Runs the documented example, then the programs that it has loaded on the second of CASES.
PROGRAM = """
import json, sys
sys.modules.update(dict.fromkeys(["jax", "jaxlib", "flax", "onnx", "lbdt_jax", "input_pipeline"]))  # can't be imported
import numpy as np
example, sentences = sys.argv[1], json.loads(sys.argv[2])
arrays = np.load("frames.npz")
names = {"frames": arrays["frames0"], "earlier_frames": arrays["earlier_frames0"]}
exec(example, names)
np.save("0.npy", names["logits"])
words, word_mask = map(np.stack, zip(*(names["encode_sentence"](sentence) for _, sentence in sentences)))
inputs = {"words": words, "word_mask": word_mask}
inputs["frame_of_sentence"] = np.array([pair for pair, _ in sentences], np.int32)
frames = {"frame": arrays["frames1"], "earlier_frame": arrays["earlier_frames1"]}
run = names["run"]
np.save("1.npy", run(names["segment"], run(names["encode"], frames) | inputs)["logits"])
"""


def run_onnx(program: bytes | Path, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    results = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return dict(zip([output.name for output in session.get_outputs()], results, strict=True))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `exported`, the model in the package, written by the command."""
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        flags = [f"--checkpoint={DEFAULT_CHECKPOINT}", f"--output={folder / 'exported'}", "--format=onnx"]
        patch.setattr(sys, "argv", ["export", *flags])
        main()
    return folder


def test_documented_example_gives_the_same_logits_without_jax(folder: Path, checkpoint: Checkpoint) -> None:
    scene = make_scene(0, "test", 0)
    pictures = np.stack([resize_frame(frame, (64, 64)) for frame in scene.frames])
    arrays = {
        f"{name}{case}": pictures[first : first + pairs]
        for case, (pairs, _) in enumerate(CASES)
        for name, first in (("frames", 10), ("earlier_frames", 4))
    }
    np.savez(folder / "frames.npz", **arrays)
    documented = (ROOT / "docs" / "predict.md").read_text()
    (example,) = re.findall(r"```python\n(import json.*?)```", documented, re.DOTALL)
    assert example.count("\n") < 35
    command = [sys.executable, "-c", PROGRAM, example, json.dumps(CASES[1][1])]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    samples = [(case, pair, sentence) for case, (_, sentences) in enumerate(CASES) for pair, sentence in sentences]
    frames = (
        np.stack([arrays[f"{name}{case}"][pair] for case, pair, _ in samples]) for name in ("frames", "earlier_frames")
    )
    encoded = (checkpoint.sentence_encoder.encode(sentence, checkpoint.config.max_words) for *_, sentence in samples)
    apply = jax.jit(make_model(checkpoint.config).apply)
    expected = np.asarray(apply(checkpoint.variables, *frames, *map(np.stack, zip(*encoded, strict=True))))
    exported = np.concatenate([np.load(folder / f"{case}.npy") for case in range(len(CASES))])
    assert exported.dtype == np.float32 and exported.shape == (7, 64, 64)
    np.testing.assert_allclose(exported, expected, rtol=0, atol=1e-4)
    assert all(np.ptp(logits) > 5 for logits in expected)


def test_description_and_files(folder: Path) -> None:
    exported = folder / "exported"
    described = json.loads((exported / "model.json").read_text())
    names = ["encode.onnx", "model.json", "segment.onnx", "vocabulary.npz"]
    assert sorted(path.name for path in exported.iterdir()) == names
    assert (described["format"], described["opset"], described["max_words"]) == ("onnx", 18, 16)
    encode, segment = described["programs"]["encode"], described["programs"]["segment"]
    assert encode["inputs"] == dict.fromkeys(("earlier_frame", "frame"), "uint8[B, 64, 64, 3]")
    assert encode["outputs"].items() <= segment["inputs"].items()
    assert segment["outputs"] == {"logits": "float32[S, 64, 64]"}
    for program in (encode, segment):
        model = onnx.load(exported / program["file"])
        onnx.checker.check_model(model, full_check=True)
        for key, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
            shapes = {x.name: [d.dim_param or str(d.dim_value) for d in x.type.tensor_type.shape.dim] for x in values}
            assert {name: text.partition("[")[2] for name, text in program[key].items()} == {
                name: ", ".join(shape) + "]" for name, shape in shapes.items()
            }
        assert str(ROOT) not in str(model.graph.node)
    with pytest.raises(UserError, match="encode.onnx is not for JAX: onnxruntime runs it. .* --format=onnx --output="):
        export.load_program(exported / "encode.onnx")


def test_network_without_transfer_and_gates_in_bfloat16(tmp_path: Path) -> None:
    config = tiny_config()
    config.model.update(transfer_layers=0, channel_gates=False, rematerialise=True, dtype="bfloat16")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.3, x.shape).astype(np.float32), shapes)
    onnx_programs.write_programs(Checkpoint(variables, config, WORDS, 0, tmp_path), tmp_path)

    frames = {name: rng.integers(0, 256, (2, 64, 64, 3), np.uint8) for name in ("frame", "earlier_frame")}
    frame_of_sentence = np.array([1, 0, 1], np.int32)
    words = rng.standard_normal((3, 5, WORD_VECTOR_SIZE), np.float32)
    word_mask = np.arange(5) < [[5], [1], [3]]
    features = run_onnx(tmp_path / "encode.onnx", frames)
    sentences = {"words": words, "word_mask": word_mask, "frame_of_sentence": frame_of_sentence}
    logits = run_onnx(tmp_path / "segment.onnx", features | sentences)["logits"]
    config.model.dtype = "float32"  # as the programs compute, whatever the checkpoint's is
    repeated = (frames[name][frame_of_sentence] for name in ("frame", "earlier_frame"))
    expected = jax.jit(make_model(config).apply)(variables, *repeated, words, word_mask)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    assert np.ptp(expected) > 0.1


def translate(function: Callable[..., Any], *shapes: str) -> bytes:
    """A function of arrays x, y, ... as an ONNX program; shapes such as "B, 3" may have unknown lengths."""
    scope = jax_export.SymbolicScope()
    arrays = [jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=scope), np.float32) for shape in shapes]
    jaxpr = jax.jit(function).trace(*arrays).jaxpr
    inputs = dict(zip("xyz", arrays, strict=False))
    return jaxpr_to_onnx.translate(jaxpr, [], inputs, ["result"], "test").SerializeToString()


convnext_stage = ConvNeXtStage(length=1, width=4, downsampled=True)
convnext_variables = jax.tree.map(
    lambda x: np.random.default_rng(0).standard_normal(x.shape, np.float32),
    jax.eval_shape(lambda: convnext_stage.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)), False)),
)

OPERATIONS = {
    "outer product": (lambda x, y: jnp.einsum("bi,bj->bij", x, y), "B, 3", "B, 4"),
    "batch axes in the middle": (lambda x, y: jnp.einsum("ibj,jkb->kbi", x, y), "3, B, 4", "4, 2, B"),
    "two contracted axes": (lambda x, y: jnp.einsum("bij,ijk->bk", x, y), "B, 3, 4", "3, 4, 2"),
    "a constant on the left": (lambda x: jnp.einsum("ij,bjk->bik", np.eye(3, dtype=np.float32) + 1, x), "B, 3, 2"),
    "a vector": (lambda x: x @ np.arange(3, dtype=np.float32), "B, 3"),
    "a broadcast batch": (lambda x: jnp.matmul(jnp.broadcast_to(np.ones((2, 3), np.float32), (x.shape[0], 2, 3)), x),
                          "B, 3, 2"),
    "broadcast and then reduced": (lambda x: jnp.broadcast_to(x.sum(1, keepdims=True), x.shape).sum((0, 1)), "B, 3"),
    "broadcast and then joined": (lambda x: jnp.concatenate([x, jnp.zeros((x.shape[0], 2))], 1), "B, 3"),
    "a result that is broadcast": (lambda x: jnp.broadcast_to(x[:, :1], x.shape), "B, 3"),
    "the length of an axis": (lambda x: x / x.shape[0], "B, 3"),
    "merged axes": (lambda x: x.reshape(-1, 3) * 2, "B, 2, 3"),
    "a scan backwards": (lambda x: jax.lax.scan(lambda c, a: (c + a, c * a), x[:, 0] * 0, x.T, reverse=True), "B, 3"),
    "strided windows": (lambda x: x[:, 1::2, ::3] - x[:, 0::2, 1::3], "B, 4, 6"),
    "known rows": (lambda x: x[:, np.array([2, 0])] + x[:, -1:], "B, 3"),
    "rows along a later axis": (lambda x, y: x[:, jnp.minimum(y[0] ** 2, 1).astype(int) - 1], "B, 3, 2", "1, 5"),
    "separate columns": (lambda x: [a - b * c for a, b, c in [jnp.unstack(x, axis=1)]][0], "B, 3, 2"),
    "borders": (lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=7)[:, ::-1], "B, 3"),
    "masks": (lambda x: jnp.where((x > 0) & ~(x >= 1) | (x == 0), -jnp.inf, jnp.minimum(x, -x)), "B, 3"),
    "functions": (
        lambda x: jax.nn.gelu(x) + jax.nn.gelu(x, approximate=False) + jax.nn.sigmoid(x) + x**3 + jnp.abs(-x) ** 0.5,
        "B, 3",
    ),
    "not ReLU": (lambda x: jnp.maximum(x, 1) + jnp.maximum(x, 0), "B, 3"),
    "a small softmax": (lambda x: jax.nn.softmax(x) + jax.nn.log_softmax(x, 0), "B, 3"),
    "what needs no input": (lambda x: x * jnp.cumsum(jnp.sort(jnp.arange(3.0))[::-1]), "B, 3"),
    "a dilated convolution": (
        lambda x: jax.lax.conv_general_dilated(
            x, np.ones((3, 2, 2, 4), np.float32), (2, 1), "SAME", rhs_dilation=(1, 2), feature_group_count=2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        "B, 5, 6, 4",
    ),
    "a stage of ConvNeXt": (
        jax.jit(lambda x: convnext_stage.apply(convnext_variables, x, False) * 5), "B, 4, 4, 2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    function, *shapes = OPERATIONS[name]
    if name == "a scan backwards":
        function = lambda x, scan=function: jnp.concatenate([scan(x)[0][None], scan(x)[1]])  # noqa: E731
    program = translate(function, *shapes)
    rng = np.random.default_rng(0)
    for batch in (1, 4):
        arrays = [
            rng.standard_normal([batch if dim == "B" else int(dim) for dim in shape.split(", ")], np.float32)
            for shape in shapes
        ]
        result = run_onnx(program, dict(zip("xyz", arrays, strict=False)))["result"]
        expected = np.asarray(function(*arrays))
        assert result.shape == expected.shape and result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x), "sort"),
        (lambda x: jnp.zeros((2 * x.shape[0], 3)).at[0].set(1), "2.B|scatter"),
        (lambda x: x[:, np.array([0, 1]), np.array([1, 0])], "gather"),
        (lambda x: jax.lax.dynamic_slice_in_dim(x, x[0, 0, 0].astype(int), 2, 1), "dynamic_slice"),
        (lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2), (1, 1, 1), "VALID"), "reduce_window_max"),
    ],
)
def test_what_is_not_translated_is_named(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        translate(function, "B, 3, 4")


def test_errors(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error_of(message: str) -> None:
        with pytest.raises(UserError, match=message):
            export.write(checkpoint, tmp_path / "new", "onnx")
        assert not [*tmp_path.iterdir()]

    with monkeypatch.context() as patch:
        patch.setattr(onnx_programs, "MAX_BYTES", 100_000)
        error_of("The program encode has 0.0 GB of weights; an ONNX file holds 2.1 GB.")
    with monkeypatch.context() as patch:
        patch.delitem(onnx_rules.BROADCASTING, "abs")
        error_of("The program encode can't be written as ONNX: .* does not translate this operation: abs. Without")
    monkeypatch.delitem(sys.modules, "lbdt_jax.export.jaxpr_to_onnx")
    monkeypatch.delattr(export, "jaxpr_to_onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    error_of("--format=onnx needs ONNX: pip install -r requirements-onnx.txt")
