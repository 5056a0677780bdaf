"""Exported programs run without our code and give our answers (lbdt_jax/export)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax import export
from lbdt_jax.checkpoint import Checkpoint, save_weights
from lbdt_jax.step import initial_variables, make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

WORDS = load_word_vectors(f"random:{WORD_VECTOR_SIZE}", {"the", "red", "circle", "moving", "left", "blue", "square"})
#: (frame pairs, questions); the first is the documented example's
CASES = [
    (1, [(0, "the red circle moving left"), (0, "the blue square")]),
    (3, [(2, "The GREEN square, left and right"), (0, "."), (0, "left"), (1, " square."), (2, "moving")]),
]

#: Runs the example of the module's docstring, then asks the programs that it has loaded the second of CASES.
PROGRAM = """
import json, sys
import numpy as np
example, questions = sys.argv[1], json.loads(sys.argv[2])
pictures = np.load("pictures.npz")
names = {"frames": pictures["frames0"], "earlier_frames": pictures["earlier_frames0"]}
exec(example, names)
np.save("0.npy", names["logits"])
words, word_mask = zip(*(names["read"](sentence) for _, sentence in questions))
asked = {"words": np.stack(words), "word_mask": np.stack(word_mask)}
asked["frame_of_sentence"] = np.array([pair for pair, _ in questions], np.int32)
frames = {"frame": pictures["frames1"], "earlier_frame": pictures["earlier_frames1"]}
np.save("1.npy", names["answer"](names["weights"], names["encode"](names["weights"], frames), asked))
assert not {"lbdt_jax", "input_pipeline", "flax", "orbax", "tensorflow"} & set(sys.modules)
"""


def tiny_checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(tiny_variables(), tiny_config(), WORDS, 0, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export.write(tiny_checkpoint(folder), folder / "exported")
    return folder


def test_the_documented_example_gives_our_answers_without_our_code(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        f"{name}{number}": rng.integers(0, 256, (pairs, 64, 64, 3), dtype=np.uint8)
        for number, (pairs, _) in enumerate(CASES)
        for name in ("frames", "earlier_frames")
    }
    np.savez(folder / "pictures.npz", **pictures)
    _, _, example = export.__doc__.partition("To run them:\n")
    example = textwrap.dedent(example.partition("\nA program is compiled")[0])
    command = [sys.executable, "-c", PROGRAM, example, json.dumps(CASES[1][1])]
    quickly = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes longer than computing
    done = subprocess.run(command, cwd=folder, env=quickly, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    asked = [(number, pair, sentence) for number, (_, questions) in enumerate(CASES) for pair, sentence in questions]
    frames = (
        np.stack([pictures[f"{name}{number}"][pair] for number, pair, _ in asked])
        for name in ("frames", "earlier_frames")
    )
    words, word_mask = zip(*(WORDS.encode(sentence, 5) for *_, sentence in asked), strict=True)
    model = make_model(tiny_config())
    expected = np.asarray(jax.jit(model.apply)(tiny_variables(), *frames, np.stack(words), np.stack(word_mask)))
    found = np.concatenate([np.load(folder / f"{number}.npy") for number in range(len(CASES))])
    assert found.dtype == np.float32 and found.shape == (7, 64, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert all(np.unique(logits).size > 1000 for logits in expected)


def test_the_description_names_everything_that_the_programs_take(folder: Path) -> None:
    described = json.loads((folder / "exported" / "model.json").read_text())
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert (described["image_size"], described["max_words"], described["word_vector_size"]) == ([64, 64], 5, 6)
    encode, answer = described["doors"]["encode"], described["doors"]["answer"]
    assert encode["inputs"] == ["weights", dict.fromkeys(("earlier_frame", "frame"), "uint8[B, 64, 64, 3]")]
    assert answer["inputs"][1] == encode["output"] and answer["output"] == "float32[S, 64, 64]"
    for door in ("encode", "answer"):
        loaded = jax.export.deserialize((folder / "exported" / f"{door}.jax").read_bytes())
        assert loaded.platforms == ("cpu", "cuda", "tpu")
    with np.load(folder / "exported" / "weights.npz", allow_pickle=False) as weights:
        assert sum(array.size for array in weights.values()) == sum(x.size for x in jax.tree.leaves(tiny_variables()))


def test_a_network_without_transfer_has_fewer_features(tmp_path: Path) -> None:
    config = tiny_config()
    config.model.transfer_layers = 0
    variables = jax.eval_shape(lambda: initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    doors = export.export_doors(Checkpoint(variables, config, WORDS, 0, tmp_path))
    features = export.describe(doors["encode"])["output"]
    assert [*features] == ["spatial_high_resolution", "spatial_res4", "temporal_high_resolution", "temporal_res4"]
    assert export.describe(doors["answer"])["inputs"][1] == features


def test_what_the_command_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "model", tiny_variables(), tiny_config(), WORDS, unused={})
    for checkpoint, output, message in [
        (tmp_path / "nothing", tmp_path / "new", "No checkpoint in"),
        (tmp_path / "model", folder / "exported", "exists already. Nothing is overwritten"),
        (tmp_path / "model", Path("/dev/null/new"), "can't be written"),
    ]:
        monkeypatch.setattr(sys, "argv", ["export", f"--checkpoint={checkpoint}", f"--output={output}"])
        with pytest.raises(SystemExit) as stopped:
            export.main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
