"""Exported programs run without this package, and give the same logits (lbdt_jax/export)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import WordVectors, load_word_vectors
from lbdt_jax import export
from lbdt_jax.checkpoint import Checkpoint, save_weights
from lbdt_jax.cli import path_flag
from lbdt_jax.export.__main__ import main, without_home
from lbdt_jax.step import initial_variables, make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

WORDS = load_word_vectors(f"random:{WORD_VECTOR_SIZE}", {"the", "red", "circle", "moving", "left", "blue", "square"})
#: (frame pairs, [(index of a frame pair, sentence)]); the first is the documented example's
CASES = [
    (1, [(0, "the red circle moving left"), (0, "the blue square")]),
    (3, [(2, "The GREEN square, left and right"), (0, "."), (0, "left"), (1, " square."), (2, "moving")]),
]

#: Runs the example of the module's docstring, then the programs that it has loaded on the second of CASES.
PROGRAM = """
import json, sys
import numpy as np
example, sentences = sys.argv[1], json.loads(sys.argv[2])
arrays = np.load("frames.npz")
names = {"frames": arrays["frames0"], "earlier_frames": arrays["earlier_frames0"]}
exec(example, names)
np.save("0.npy", names["logits"])
words, word_mask = zip(*(names["encode_sentence"](sentence) for _, sentence in sentences))
inputs = {"words": np.stack(words), "word_mask": np.stack(word_mask)}
inputs["frame_of_sentence"] = np.array([pair for pair, _ in sentences], np.int32)
frames = {"frame": arrays["frames1"], "earlier_frame": arrays["earlier_frames1"]}
np.save("1.npy", names["segment"](names["weights"], names["encode"](names["weights"], frames), inputs))
assert not {"lbdt_jax", "input_pipeline", "flax", "orbax", "tensorflow"} & set(sys.modules)
"""


def tiny_checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(tiny_variables(), tiny_config(), WORDS, 0, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export.write(tiny_checkpoint(folder), folder / "exported")
    return folder


def test_documented_example_gives_the_same_logits_without_this_package(folder: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}{number}": rng.integers(0, 256, (pairs, 64, 64, 3), dtype=np.uint8)
        for number, (pairs, _) in enumerate(CASES)
        for name in ("frames", "earlier_frames")
    }
    np.savez(folder / "frames.npz", **arrays)
    _, _, example = export.__doc__.partition("To run them:\n")
    example = textwrap.dedent(example.partition("\nA program is compiled")[0])
    command = [sys.executable, "-c", PROGRAM, example, json.dumps(CASES[1][1])]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes longer than computing
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    samples = [(case, pair, sentence) for case, (_, sentences) in enumerate(CASES) for pair, sentence in sentences]
    frames = (
        np.stack([arrays[f"{name}{case}"][pair] for case, pair, _ in samples]) for name in ("frames", "earlier_frames")
    )
    words, word_mask = zip(*(WORDS.encode(sentence, 5) for *_, sentence in samples), strict=True)
    model = make_model(tiny_config())
    expected = np.asarray(jax.jit(model.apply)(tiny_variables(), *frames, np.stack(words), np.stack(word_mask)))
    exported = np.concatenate([np.load(folder / f"{case}.npy") for case in range(len(CASES))])
    assert exported.dtype == np.float32 and exported.shape == (7, 64, 64)
    np.testing.assert_allclose(exported, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert all(np.unique(logits).size > 1000 for logits in expected)


def test_description_names_all_inputs_and_outputs(folder: Path) -> None:
    described = json.loads((folder / "exported" / "model.json").read_text())
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert (described["image_size"], described["max_words"], described["word_vector_size"]) == ([64, 64], 5, 6)
    encode, segment = described["programs"]["encode"], described["programs"]["segment"]
    assert encode["inputs"] == ["weights", dict.fromkeys(("earlier_frame", "frame"), "uint8[B, 64, 64, 3]")]
    assert segment["inputs"][1] == encode["output"] and segment["output"] == "float32[S, 64, 64]"
    for program, file in ((encode, "encode.jax"), (segment, "answer.jax")):
        assert program.pop("file") == file
        assert jax.export.deserialize((folder / "exported" / file).read_bytes()).platforms == ("cpu", "cuda", "tpu")
    assert described["doors"] == {"encode": encode, "answer": segment}  # for older scripts
    with np.load(folder / "exported" / "weights.npz", allow_pickle=False) as weights:
        assert sum(array.size for array in weights.values()) == sum(x.size for x in jax.tree.leaves(tiny_variables()))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            "answer.jax",
            lambda content: content[:-9] + b"X" + content[-8:],
            "answer.jax was changed since .*damaged. Export",
        ),
        ("encode.jax", lambda content: content[:999], "encode.jax was changed since it was exported"),
        (
            "model.json",
            lambda content: content[:99],
            "model.json is broken: .* Export again: python -m lbdt_jax.export",
        ),
        ("model.json", lambda content: b"[" * 100_000, "model.json is broken"),
        # An export of another version, or of one that wrote no checksums.
        ("encode.jax", None, r"can't be read by jax .* exported by jax \S+\. .*half a year.*Export again"),
    ],
)
def test_programs_that_can_not_be_read(
    folder: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None, message: str
) -> None:
    assert export.load_program(folder / "exported" / file.replace("model.json", "encode.jax")).platforms
    exported = shutil.copytree(folder / "exported", tmp_path / "exported")
    if damage is None:
        described = json.loads((exported / "model.json").read_text())
        del described["sha256"]
        (exported / "model.json").write_text(json.dumps(described))
    content = (exported / file).read_bytes()
    (exported / file).write_bytes(damage(content) if damage else content[:9999] + bytes(2000) + content[11999:])
    with pytest.raises(UserError, match=f"(?s){message}"):
        export.load_program(exported / file.replace("model.json", "encode.jax"))


@pytest.mark.parametrize(
    ("days", "version", "message"),
    [
        (181, "0.1.0", None),
        (400, jax.__version__, None),  # what counts is which versions they are
        (183, "0.1.0", r"still be read by jax .* On 20\d\d-\d\d-\d\d it was exported by jax 0\.1\.0\. .* half a year"),
    ],
)
def test_programs_of_an_old_date_are_read_with_a_warning(
    folder: Path, tmp_path: Path, days: int, version: str, message: str | None
) -> None:
    exported = shutil.copytree(folder / "exported", tmp_path / "exported")
    described = json.loads((exported / "model.json").read_text())
    today = datetime.datetime.now(datetime.UTC).date()
    # The day before, if midnight has passed since.
    assert described["exported"] in (str(today), str(today - datetime.timedelta(1))) and "checkpoint" not in described
    described["exported"] = str(today - datetime.timedelta(days))
    described |= {"jax": version, "checkpoint": "~/my runs/best"}
    (exported / "model.json").write_text(json.dumps(described))
    command = re.escape("python -m lbdt_jax.export --checkpoint='~/my runs/best' --output=DIR")
    with pytest.warns(UserWarning, match=f"{message}.*{command}") if message else contextlib.nullcontext():
        assert export.load_program(exported / "encode.jax").platforms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exported": "2024-02-30"}, "model.json is broken"),
        ({"exported": ["2024"]}, "model.json is broken"),
        ({"sha256": 3}, "model.json is broken"),
        (
            {"exported": "2024-02-03", "jax": "0.4.0"},
            r"On 2024-02-03 it was exported by jax 0\.4\.0\. .*--checkpoint=DIR",
        ),
        ({"checkpoint": "runs/a; rm -r b"}, r"--checkpoint='runs/a; rm -r b' --output=DIR"),
        ({"checkpoint": "a\x1b[2J"}, "--checkpoint=DIR --output=DIR"),
    ],
)
def test_programs_of_a_calling_convention_that_jax_no_longer_reads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    exported = shutil.copytree(folder / "exported", tmp_path / "exported")
    described = json.loads((exported / "model.json").read_text())
    version = described["calling_convention_version"]
    (exported / "model.json").write_text(json.dumps(described | changes))
    for bound in ("minimum", "maximum"):
        monkeypatch.setattr(f"jax.export.{bound}_supported_calling_convention_version", version + 1)
    expected = message if "broken" in message else f"calling convention has version {version}, not {version + 1} to"
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        export.load_program(exported / "answer.jax")
    assert expected in str(error.value) or "broken" in message
    assert "Export again: python -m lbdt_jax.export --checkpoint=" in str(error.value)


def test_a_vocabulary_without_words_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    no_words = WordVectors((), np.zeros((0, WORD_VECTOR_SIZE), np.float32))
    export.write_vocabulary(dataclasses.replace(tiny_checkpoint(tmp_path), sentence_encoder=no_words), tmp_path)
    assert f"{tmp_path} holds no words" in capsys.readouterr().out


def test_network_without_transfer_has_fewer_features(tmp_path: Path) -> None:
    config = tiny_config()
    config.model.transfer_layers = 0
    variables = jax.eval_shape(lambda: initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    programs = export.export_programs(Checkpoint(variables, config, WORDS, 0, tmp_path))
    features = export.describe(programs["encode"])["output"]
    assert [*features] == ["spatial_high_resolution", "spatial_res4", "temporal_high_resolution", "temporal_res4"]
    assert export.describe(programs["segment"])["inputs"][1] == features


def test_errors_of_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_weights(tmp_path / "model", tiny_variables(), tiny_config(), WORDS, unused={})
    (tmp_path / "link").symlink_to("missing")
    for checkpoint, output, message in [
        (tmp_path / "nothing", tmp_path / "new", "No checkpoint in"),
        (tmp_path / "model", folder / "exported", "exists already. Nothing is overwritten"),
        (tmp_path / "model", tmp_path / "link", "exists already. Nothing is overwritten"),
        (tmp_path / "model", Path("/dev/null/new"), "can't be written"),
    ]:
        monkeypatch.setattr(sys, "argv", ["export", f"--checkpoint={checkpoint}", f"--output={output}"])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert exit_info.value.code == 2 and message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"] and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("path", "written"), [("~/runs/a", "~/runs/a"), ("/home/someone/b", "~/b"), ("c/d", "c/d")])
def test_the_description_names_no_home_folder(path: str, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(without_home(path_flag(path))) == written
