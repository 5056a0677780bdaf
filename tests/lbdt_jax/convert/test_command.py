"""The convert command in both directions, the files that it rejects, and initial weights (lbdt_jax/convert)."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict, unflatten_dict
from paths import GOLDEN, ROOT
from published import encode_and_segment, published_inputs, torch_state
from safetensors.numpy import save_file
from tiny import tiny_config, tiny_state, tiny_variables

from configs import base
from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter, load_checkpoint, load_unused, save_weights
from lbdt_jax.convert.__main__ import main
from lbdt_jax.convert.files import read_torch
from lbdt_jax.convert.initial import CLASSIFIER, find_initial_weights, load_image_encoder, load_initial_weights
from lbdt_jax.convert.names import from_torch, resnet, shapes
from lbdt_jax.parallel import make_mesh, replicate
from lbdt_jax.step import make_model

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def flags_of_one_command_only() -> Iterator[None]:
    with flagsaver.flagsaver():
        yield


def tensors(state: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def convert(source: Path, target: Path) -> None:
    main(["convert", f"--from={source}", f"--to={target}"])


def error_of(source: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a conversion that must fail and write nothing. Returns its message."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(SystemExit) as stopped:
        convert(source, target)
    assert stopped.value.code == 2
    assert sorted(target.parent.iterdir()) == before
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LBDT-1 as released, published.ckpt, converted by the command to ours/ and from there to back.ckpt.

    Only the first conversion runs in a process of its own, since that takes seconds to import JAX and trace the model.
    """
    folder = tmp_path_factory.mktemp("converted")
    torch.save(collections.OrderedDict(tensors(torch_state("lbdt1_r50"))), folder / "published.ckpt")
    arguments = [f"--from={folder / 'published.ckpt'}", f"--to={folder / 'ours'}"]
    command = [sys.executable, "-m", "lbdt_jax.convert", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    (folder / "ours.txt").write_text(done.stdout)
    stdout, stderr = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        convert(folder / "ours", folder / "back.ckpt")
    assert not stderr.getvalue()
    (folder / "back.ckpt.txt").write_text(stdout.getvalue())
    return folder


def initialize(variables: dict[str, Any], path: Path) -> dict[str, Any]:
    """`load_initial_weights` for a training with the published settings and vectors of 300 numbers."""
    return load_initial_weights(variables, path, base.get_config(), WordVectors((), np.zeros((0, 300), np.float32)))


def assert_same_file(first: Path, second: Path) -> None:
    """Compares keys in their order, shapes, dtypes and bytes."""
    a, b = (torch.load(path, weights_only=True) for path in (first, second))
    assert list(a) == list(b)
    for key in a:
        assert (a[key].dtype, a[key].shape, a[key].stride()) == (b[key].dtype, b[key].shape, b[key].stride()), key
        assert a[key].numpy().tobytes() == b[key].numpy().tobytes(), key


def test_a_released_file_predicts_the_published_logits(folder: Path) -> None:
    checkpoint = load_checkpoint(folder / "ours")
    assert checkpoint.step == 0
    assert checkpoint.sentence_encoder.words == () and checkpoint.sentence_encoder.vectors.shape == (0, 300)
    inputs = {name: value for name, value in published_inputs("small", "float32").items() if name != "target"}
    logits = jax.jit(
        lambda variables: make_model(checkpoint.config).apply(variables, inputs, method=encode_and_segment)
    )
    actual = np.asarray(logits(checkpoint.variables)).reshape(-1)
    golden = np.load(GOLDEN / "forward_lbdt1_r50_small.npz")
    mean, std = golden["logits:stats"][:2]
    rms = np.sqrt(mean**2 + std**2)
    expected = golden["logits:full"].reshape(-1) if "logits:full" in golden else golden["logits:val"]
    actual = actual if "logits:full" in golden else actual[golden["logits:idx"]]
    errors = np.abs(actual - expected)
    assert errors.max() <= 1e-4 * rms
    assert np.sqrt(np.mean(errors**2)) <= 2e-5 * rms


def test_converting_there_and_back_gives_the_same_bytes(folder: Path) -> None:
    assert_same_file(folder / "published.ckpt", folder / "back.ckpt")
    manifest = json.loads((GOLDEN / "manifest_lbdt1_r50.json").read_text())
    back = torch.load(folder / "back.ckpt", weights_only=True)
    assert [[key, list(x.shape), str(x.dtype).removeprefix("torch.")] for key, x in back.items()] == manifest


def test_the_command_prints_the_model_and_the_unused_arrays(folder: Path) -> None:
    output = (folder / "ours.txt").read_text()
    for part in ("LBDT-1 with ResNet-50", "never uses 46 of them", "1,184,030 weights", "135 counters"):
        assert part in output
    assert "880 arrays" in (folder / "back.ckpt.txt").read_text()


def test_a_trained_model_has_no_unused_arrays(folder: Path, tiny_run: Path) -> None:
    assert len(load_unused(folder / "ours")) == 46 + 135
    assert load_unused(tiny_run) == {}


def test_from_folder_to_folder_only_the_weights_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tiny_state(tiny_config()).replace(step=np.asarray(12, np.int32))
    words = WordVectors(("dog", "red"), np.arange(12, dtype=np.float32).reshape(2, 6))
    with CheckpointWriter(tmp_path / "run" / "checkpoints", 1) as writer:
        writer.save(replicate(state, make_mesh(jax.devices()[:1])), tiny_config(), words)
    convert(tmp_path / "run", tmp_path / "weights")
    assert "after 12 steps" in capsys.readouterr().out
    assert "run exists already" in error_of(tmp_path / "weights", tmp_path / "run", capsys)
    run, weights = (load_checkpoint(tmp_path / name) for name in ("run", "weights"))
    arrays = [{**flatten_dict(c.variables), "words": c.sentence_encoder.vectors} for c in (run, weights)]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    assert [(c.step, c.sentence_encoder.words) for c in (run, weights)] == [(12, ("dog", "red"))] * 2
    assert run.config.to_dict() == weights.config.to_dict()
    assert not list((tmp_path / "weights").rglob("optimizer_state"))


@pytest.mark.parametrize("form", ["module.", "state_dict", "model", "old", "parameters"])
def test_all_formats_of_state_dicts_are_read(form: str, tmp_path: Path) -> None:
    state = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.num_batches_tracked": np.asarray(7)}
    saved: Any = tensors(state)
    if form == "module.":
        saved = {f"module.{name}": value for name, value in saved.items()}
    elif form == "parameters":
        saved["a.weight"] = torch.nn.Parameter(saved["a.weight"])
    elif form != "old":
        saved = {form: saved, "epoch": 3}
    torch.save(saved, tmp_path / "file.pth", _use_new_zipfile_serialization=form != "old")
    actual = read_torch(tmp_path / "file.pth")
    assert list(actual) == list(state)
    for name, value in state.items():
        assert actual[name].dtype == value.dtype and np.array_equal(actual[name], value)


STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.num_batches_tracked": torch.tensor(7)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


def with_attribute(value: torch.Tensor) -> torch.Tensor:
    """A parameter that hides one of its methods once it is loaded."""
    parameter = torch.nn.Parameter(value, requires_grad=False)
    parameter.__dict__["detach"] = 5
    return parameter


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    "saved",
    [
        *({name: STATE, "epoch": 3, "optimizer": OPTIMIZER} for name in ("net", "model_ema", "generator", "params")),
        {"model": STATE, "args": argparse.Namespace(lr=0.1, layers=[1, {"a": 2}]), "when": datetime.datetime.now()},
        {"state_dict": STATE, "best": np.float64(3), "scores": np.arange(5), "folder": Path("runs")},
        {"model": prefixed("module._orig_mod.")},
        prefixed("_orig_mod.module."),
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 1}, "optimizer_states": [OPTIMIZER]},
        {"model": {"state_dict": {"net": STATE}}},
        {name: torch._neg_view(-value) for name, value in STATE.items()},
        {"state_dict": STATE, "epoch": torch.tensor(3), "best_acc1": torch.tensor(76.1)},
        {name: with_attribute(value) for name, value in STATE.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_save_is_understood(saved: dict[str, Any], zipped: bool, tmp_path: Path, capsys) -> None:
    torch.save(saved, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    actual = read_torch(tmp_path / "file.pth")
    assert list(actual) == list(STATE) and not capsys.readouterr().out
    assert all(np.array_equal(actual[name], value) for name, value in STATE.items())


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "file.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert np.array_equal(read_torch(tmp_path / "file.pth")["a.weight"], STATE["a.weight"])


def test_which_of_several_state_dicts_is_read_is_said(tmp_path: Path, capsys) -> None:
    averages = {name: value + 1 for name, value in STATE.items()}
    torch.save({"model_ema": {"module": averages}, "model": STATE}, tmp_path / "both.pth")
    assert np.array_equal(read_torch(tmp_path / "both.pth")["a.weight"], STATE["a.weight"])
    assert "read the weights under 'model'; there are also model_ema" in capsys.readouterr().out
    torch.save({"optimizer": OPTIMIZER, "student": STATE, "teacher": averages}, tmp_path / "both.pth")
    assert np.array_equal(read_torch(tmp_path / "both.pth")["a.weight"], STATE["a.weight"])
    assert "read the weights under 'student'; there are also teacher" in capsys.readouterr().out


class Config:
    """A class of somebody's trainer."""


def one_gigabyte(path: Path) -> None:
    """Rewrites a file of torch.save so that it unpacks to a gigabyte."""
    with zipfile.ZipFile(path) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for name, content in contents.items():
            with target.open(name, "w", force_zip64=True) as file:
                file.write(content)
                for _ in range(1024 if name.endswith("data/0") else 0):
                    file.write(bytes(2**20))


def flip_a_bit(path: Path) -> None:
    """Changes 5.0, the last number of STATE["a.weight"], to 5.25."""
    content = path.read_bytes()
    assert content.count(struct.pack("<f", 5)) == 1
    path.write_bytes(content.replace(struct.pack("<f", 5), struct.pack("<f", 5.25)))


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"model": STATE, "config": Config()}, r"would call \w*test_command.Config, .*Nothing in it was executed"),
        (torch.nn.Linear(2, 2), "would call torch.nn.modules.linear.Linear, .*model.state_dict"),
        ({"optimizer": OPTIMIZER, "epoch": 1}, r"no state dict. It holds optimizer \(dict\), epoch \(int\)"),
        ({"a": torch.zeros(2, device="meta")}, "a: torch.float32 on the device meta, without values"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "a: torch.complex64"),
        (
            lambda path: torch.save({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, path),
            "a: torch.float32, nested",
        ),
        ({"a": torch.eye(3).to_sparse()}, "a: torch.float32, sparse_coo"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)._neg_view()}, "arrays would take 4,000.0 GB"),
        ({"a": torch.zeros(3).untyped_storage()}, r"no state dict. It holds a \(TypedStorage\)"),
        ({str(i): torch.ones(1).half() for i in range(500)}, r"9: torch.float16\n  ... and 490 more\n?$"),
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git-lfs pointer.*git lfs pull"),
        (b'{"error": "not found"}', "is a text that begins with"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip; unpack it first"),
        (b"\x80\x02\x8e" + (1 << 40).to_bytes(8, "little"), "is broken"),
        (b"cos\nsystem\n(S'true'\ntR.", "would call os.system"),
        (one_gigabyte, "would unpack to 1,07.* MB: it is refused"),
        (flip_a_bit, r"file.ckpt is broken: Bad CRC-32 for file '\w+/data/0'. Download or copy it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "file.ckpt is broken"),
        (lambda path: torch.jit.save(torch.jit.script(torch.nn.ReLU()), path), "is a TorchScript archive"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a/b.ckpt", b""), "zip archive .*holds a/b.ckpt. Unpack it"),
        (lambda path: save_file({"a": np.ones(3, np.float32)}, path), "is a .safetensors file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is a named pipe"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is a device"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of torch
def test_what_can_not_be_converted_is_named(saved: Any, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "file.ckpt"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    elif callable(saved) and not isinstance(saved, torch.nn.Module):
        torch.save(STATE, path)
        saved(path)
    else:
        torch.save(saved, path)
    error = error_of(path, tmp_path / "ours", capsys)
    assert re.search(message, error, re.DOTALL) and str(path) in error
    assert len(error.splitlines()) <= 12 and "weights_only" not in error and "Traceback" not in error


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORKDIR with the weights of a tiny model."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


def save_tiny(workdir: Path) -> None:
    save_weights(workdir, tiny_variables(), tiny_config(), WordVectors((), np.zeros((0, 6), np.float32)), {})


def test_a_target_that_can_not_be_written_is_one_line(tiny_run: Path, tmp_path: Path, capsys) -> None:
    for target in (Path("/dev/null/new"), tmp_path / ("a" * 300)):
        with pytest.raises(SystemExit):
            convert(tiny_run, target)
        error = capsys.readouterr().err
        assert f"{target} can't be written" in error and error.count("\n") == 1
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)  # has the effect of a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        error = error_of(tiny_run, tmp_path / "new", capsys)
        threads = set(threading.enumerate())  # some of loading may be ending still
        with pytest.raises(OSError, match="File too large"):
            save_tiny(tmp_path / "direct")
        # A thread that still writes would make the deleted folder again.
        assert set(threading.enumerate()) <= threads
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert re.fullmatch(f"{tmp_path / 'new'} can't be written: .*File too large\n", error)


def test_other_widths_are_ten_lines(tiny_run: Path, tmp_path: Path, capsys) -> None:
    lines = error_of(tiny_run, tmp_path / "new.ckpt", capsys).splitlines()
    assert lines[0].startswith("The published code has other widths") and len(lines) == 12
    assert re.fullmatch(r"  \.\.\. and \d{3} more", lines[-1])


def test_a_network_that_the_published_code_would_run_differently_is_rejected(tmp_path: Path, capsys) -> None:
    config = tiny_config()
    config.model.frame_difference = False
    save_weights(tmp_path / "run", tiny_variables(), config, WordVectors((), np.zeros((0, 6), np.float32)), {})
    assert "was trained with config.model.frame_difference=False" in error_of(
        tmp_path / "run", tmp_path / "x.ckpt", capsys
    )


def test_weights_that_are_not_finite_are_rejected(tmp_path: Path, capsys) -> None:
    state = tensors(torch_state("lbdt1_r50"))
    state["bn1_1.running_mean"][3] = torch.nan
    state["decoder.mask_head.bias"][0] = torch.inf  # never used
    torch.save(state, tmp_path / "nan.ckpt")
    assert error_of(tmp_path / "nan.ckpt", tmp_path / "ours", capsys).splitlines() == [
        f"{tmp_path / 'nan.ckpt'}: Some numbers are NaN or infinite. Did the training diverge?",
        "  bn1_1.running_mean",
    ]


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("way", ["torch.save", "old torch.save", "torch.save, protocol 4", "pickle"])
def test_a_malicious_file_is_rejected_and_not_executed(way: str, tmp_path: Path, capsys) -> None:
    source, marker = tmp_path / "evil.ckpt", tmp_path / "marker"
    content = {"conv1_1.weight": Malicious(marker)}
    if way == "pickle":
        source.write_bytes(pickle.dumps(content))
    else:
        protocol = 4 if way.endswith("4") else 2
        torch.save(content, source, pickle_protocol=protocol, _use_new_zipfile_serialization="old" not in way)
    message = error_of(source, tmp_path / "ours", capsys)
    assert f"{os.system.__module__}.system" in message and str(source) in message
    assert not marker.exists()


def test_a_broken_file_is_rejected(folder: Path, tmp_path: Path, capsys) -> None:
    half = tmp_path / "half.ckpt"
    half.write_bytes((folder / "published.ckpt").read_bytes()[:1_000_000])
    assert "half.ckpt is broken" in error_of(half, tmp_path / "ours", capsys)
    text = tmp_path / "text.ckpt"
    text.write_text("<html>not found</html>\n")
    assert "text.ckpt is broken" in error_of(text, tmp_path / "ours", capsys)
    (tmp_path / "empty.ckpt").touch()
    assert "empty.ckpt is broken" in error_of(tmp_path / "empty.ckpt", tmp_path / "ours", capsys)
    for number, content in enumerate((torch.zeros(3), [1, 2], {})):
        torch.save(content, tmp_path / f"{number}.ckpt")
        assert "no state dict" in error_of(tmp_path / f"{number}.ckpt", tmp_path / "ours", capsys)
    assert "there is no" in error_of(tmp_path / "nothing.ckpt", tmp_path / "ours", capsys)
    (tmp_path / "folder").mkdir()
    assert "No checkpoint in" in error_of(tmp_path / "folder", tmp_path / "new.ckpt", capsys)


def test_other_types_than_float32_are_listed(tmp_path: Path, capsys) -> None:
    saved = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16), "c": torch.zeros(2).half(), "epoch": 3}
    torch.save(saved, tmp_path / "half.ckpt")
    *_, b, c, epoch = error_of(tmp_path / "half.ckpt", tmp_path / "ours", capsys).splitlines()
    assert (b, c, epoch) == ("  b: torch.bfloat16", "  c: torch.float16", "  epoch: int")


def test_a_state_dict_with_other_names_is_rejected(tmp_path: Path, capsys) -> None:
    state = tensors(torch_state("lbdt1_r50"))
    state["unknown"] = state.pop("bn1_2.bias")
    torch.save(state, tmp_path / "other.ckpt")
    message = error_of(tmp_path / "other.ckpt", tmp_path / "ours", capsys)
    assert "missing: ['bn1_2.bias']" in message and "unexpected: ['unknown']" in message


def test_without_torch(folder: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for source, target in ((folder / "published.ckpt", tmp_path / "ours"), (folder / "ours", tmp_path / "new.ckpt")):
        assert "pip install -r requirements-torch.txt" in error_of(source, target, capsys)


def test_nothing_is_overwritten(folder: Path, tmp_path: Path, capsys) -> None:
    for source, target in (("published.ckpt", "ours"), ("published.ckpt", "back.ckpt"), ("ours", "back.ckpt")):
        before = (folder / "back.ckpt").stat()
        assert "exists already" in error_of(folder / source, folder / target, capsys)
        assert (folder / "back.ckpt").stat() == before


def test_from_file_to_file_nothing_is_converted(folder: Path, tmp_path: Path, capsys) -> None:
    assert "would be PyTorch's file, as" in error_of(folder / "published.ckpt", tmp_path / "new.pth", capsys)


@pytest.mark.parametrize("arguments", [[], ["--from=a"], ["--frm=a"], ["--from=a", "--to=b", "safetensors"]])
def test_a_wrong_command_line_prints_the_usage(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["convert", *arguments])
    assert stopped.value.code == 2
    assert "python -m lbdt_jax.convert --from=DIR --to=new.ckpt" in capsys.readouterr().err


def test_training_can_not_resume_from_a_converted_checkpoint(folder: Path) -> None:
    with CheckpointWriter(folder / "ours" / "checkpoints", 1) as writer:
        with pytest.raises(CheckpointError, match="--config.initial_weights="):
            writer.restore(replicate(tiny_state(tiny_config()), make_mesh(jax.devices()[:1])))


# -- initial weights


@pytest.fixture
def variables() -> dict[str, Any]:
    """LBDT-1 with ResNet-50; every weight is 0.5."""
    return constant_variables(50)


def constant_variables(depth: int) -> dict[str, Any]:
    return unflatten_dict({path: np.full(shape, 0.5, np.float32) for path, shape in shapes(depth, 1, 300).items()})


def imagenet(depth: int) -> dict[str, np.ndarray]:
    """A random state dict of torchvision's ResNet."""
    flax_shapes, rng = shapes(depth, 1, 300), np.random.default_rng(depth)
    state = {}
    for row in resnet("spatial_stream", depth, "", LAYERS):
        shape = row.torch_shape(flax_shapes[row.path]) if row.path else ()
        state[row.key] = rng.standard_normal(shape, np.float32) if row.path else np.asarray(5)
    return {**state, "fc.weight": np.zeros((1000, 4), np.float32), "fc.bias": np.zeros(1000, np.float32)}


def hugging_face_name(name: str) -> str:
    """The name in transformers' ResNetForImageClassification of an array in torchvision's ResNet."""
    layer, *rest = name.split(".")
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    if layer in ("conv1", "bn1"):
        return ".".join(["resnet.embedder.embedder", kinds[layer[:-1]], *rest])
    if layer == "fc":
        return f"classifier.1.{rest[0]}"
    block, part, *rest = rest
    if part == "downsample":
        inside = ["shortcut", kinds[rest.pop(0)]]
    else:
        inside = ["layer", str(int(part[-1]) - 1), kinds[part[:-1]]]
    return ".".join(["resnet.encoder.stages", str(int(layer[-1]) - 1), "layers", block, *inside, *rest])


def save_repository(folder: Path, state: dict[str, np.ndarray], **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({hugging_face_name(name): value for name, value in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", **settings}))
    return folder


def assert_both_streams_hold(variables: dict[str, Any], state: dict[str, np.ndarray], depth: int) -> None:
    """Checks both streams with the table of LBDT's names, which the golden logits prove to be right."""
    flat = flatten_dict(variables)
    rest = {path for path in flat if not path[1].endswith("_stream")}
    assert all((flat[path] == 0.5).all() for path in rest) and rest
    for stream in ("spatial_stream", "temporal_stream"):
        rows = [row for row in resnet(stream, depth, "", LAYERS) if row.path]
        assert {row.path for row in rows} == {path for path in flat if path[1] == stream}
        for row in rows:
            np.testing.assert_array_equal(row.to_torch(flat[row.path]), state[row.key])


@pytest.mark.parametrize("depth", [18, 50])
def test_imagenet_weights_fill_both_streams(depth: int, tmp_path: Path) -> None:
    state = imagenet(depth)
    torch.save(tensors(state), tmp_path / "resnet.pth")
    assert_both_streams_hold(initialize(constant_variables(depth), tmp_path / "resnet.pth"), state, depth)
    repository = save_repository(tmp_path / "resnet", state, downsample_in_bottleneck=False, hidden_act="relu")
    for path in (repository, repository / "model.safetensors"):
        assert_both_streams_hold(initialize(constant_variables(depth), path), state, depth)
    assert load_image_encoder(repository).keys() == state.keys() - set(CLASSIFIER)


def test_names_are_those_of_microsoft_resnet_50() -> None:
    assert hugging_face_name("layer1.0.conv1.weight") == "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    assert hugging_face_name("layer4.0.downsample.1.running_var") == (
        "resnet.encoder.stages.3.layers.0.shortcut.normalization.running_var"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; the ResNets of this code have 'relu'"),
        # As of timm/resnetaa50.a1h_in1k and timm/resnetblur50.bt_in1k, whose arrays are named as those of a ResNet-50.
        ({"architecture": "resnetaa50"}, "architecture is 'resnetaa50'"),
        ({"architecture": "resnetblur50"}, "architecture is 'resnetblur50'"),
    ],
)
def test_a_resnet_that_computes_something_else_is_rejected(settings, message: str, variables, tmp_path: Path) -> None:
    repository = save_repository(tmp_path / "other", imagenet(50), **settings)
    with pytest.raises(UserError, match=message):
        initialize(variables, repository)


def test_another_resnet_is_rejected_with_all_names(variables, tmp_path: Path) -> None:
    torch.save(tensors(imagenet(101)), tmp_path / "deeper.pth")
    with pytest.raises(UserError, match=r"deeper.pth: (?s:.*)unexpected: \['layer3\.10\.bn1\.bias'"):
        initialize(variables, tmp_path / "deeper.pth")
    state = imagenet(50)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"][:1]
    save_repository(tmp_path / "narrow", state)
    with pytest.raises(UserError, match=r"layer1.0.conv1.weight: expected \(64, 64, 1, 1\), found \(1, 64, 1, 1\)"):
        initialize(variables, tmp_path / "narrow")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="broken.safetensors is broken"):
        initialize(variables, tmp_path / "broken.safetensors")


def impossible(header: Any, data: bytes = b"1234", size: int | None = None) -> bytes:
    """A .safetensors file with any header, which may lie about its own size."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if size is None else size) + content + data


def one_array(shape: list[Any], dtype: str = "F32", end: int = 4) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        impossible(one_array([1]), size=2**62),
        impossible(b" " * (17 << 20) + b"{}", b""),
        impossible(b'{"a":' * 100_000),
        impossible([]),
        impossible(one_array([2**63])),
        impossible(one_array([-1])),
        impossible(one_array([2**32, 2**32, 4])),
        impossible(one_array([0, 2**62], end=0), b""),
        impossible(one_array([1] * 70)),
        impossible(one_array([1], "F99")),
    ],
)
def test_impossible_headers(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors is broken, or not a .safetensors file"):
        load_image_encoder(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "null", "", " " * (9 << 20), os.mkfifo])
def test_a_broken_config_of_a_resnet(content: Any, tmp_path: Path) -> None:
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    content(path) if callable(content) else path.write_text(content)
    with pytest.raises(UserError, match="config.json is not the config.json of a Hugging Face repository"):
        load_image_encoder(tmp_path)


def test_the_message_for_a_missing_file_says_what_to_download() -> None:
    with pytest.raises(
        UserError, match=r"resnet50-0676ba61\.pth and save it as data/r\.pth.*--config\.initial_weights="
    ):
        find_initial_weights("data/r.pth", base.get_config().model)
    with pytest.raises(UserError, match=r"there is no data/r\.pth\. Train that model first"):
        find_initial_weights("data/r.pth", tiny_config().model)


def test_initial_weights_from_a_complete_lbdt(folder: Path, variables) -> None:
    expected = flatten_dict(from_torch(torch_state("lbdt1_r50")))
    for source in ("published.ckpt", "ours"):
        actual = flatten_dict(initialize(variables, folder / source))
        assert actual.keys() == expected.keys()
        assert all(np.array_equal(actual[path], expected[path]) for path in actual)
    del variables["params"]["duplex_transfer5"]
    with pytest.raises(UserError, match="params/duplex_transfer5/.*: expected nothing, found"):
        initialize(variables, folder / "ours")


@pytest.mark.slow
def test_a_full_conversion_takes_little_time_and_memory(tmp_path: Path) -> None:
    published, ours, back = tmp_path / "published.ckpt", tmp_path / "ours", tmp_path / "back.ckpt"
    torch.save(tensors(torch_state("lbdt4_r50")), published)
    program = (
        "import re, sys; from lbdt_jax.convert.__main__ import main; main(sys.argv);"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    for source, target in ((published, ours), (ours, back)):
        command = [sys.executable, "-c", program, f"--from={source}", f"--to={target}"]
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert time.monotonic() - started < 30
        # Imports included. From /proc, in units of 1024 bytes; getrusage would count this process's memory, too.
        assert 1024 * int(done.stdout.split()[-1]) < 2.5 * published.stat().st_size
    assert_same_file(published, back)
