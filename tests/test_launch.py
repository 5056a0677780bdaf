"""The rows of the paper's tables from a released checkpoint, on a made-up miniature of the data (launch/)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fabricate import fabricate_jhmdb, write_a2d
from published import torch_state

ROOT = Path(__file__).parent.parent


def launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs launch/published.sh in an empty folder, with this project's packages."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    (folder / "configs").symlink_to(ROOT / "configs") if not (folder / "configs").exists() else None
    command = [str(ROOT / "launch" / "published.sh"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage"),
        (["a2d", "lbdt2", "x.ckpt"], "usage"),
        (["ytvos", "lbdt4", "x.ckpt"], "usage"),
        (["a2d", "lbdt4", "missing.ckpt"], "no file missing.ckpt"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_both_tables_from_one_released_checkpoint(tmp_path: Path) -> None:
    import torch

    state = {name: torch.from_numpy(np.array(array)) for name, array in torch_state("lbdt1_r50").items()}
    torch.save({f"module.{name}": array for name, array in state.items()}, tmp_path / "lbdt1.ckpt")
    raw = tmp_path / "data" / "raw"
    write_a2d(raw / "a2d_sentences")
    fabricate_jhmdb(raw / "jhmdb_sentences")
    numbers = " ".join(["0.25", "-0.5"] * 150)
    words = ["the", "man", "in", "red", "cat", "is", "jumping", "black", "a", "woman", "running", "clapping"]
    (tmp_path / "data" / "glove.840B.300d.txt").write_text("".join(f"{word} {numbers}\n" for word in words))

    # A few frames at once: the miniature holds no more.
    few = ("--config.evaluation_frames=1", "--config.evaluation_sentences=1", "--config.evaluation_attention_sheets=0")
    for table, dataset in (("a2d", "a2d_sentences"), ("jhmdb", "jhmdb_sentences")):
        done = launch(tmp_path, table, "lbdt1", "lbdt1.ckpt", *few)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("LBDT-1 with ResNet-50" in done.stdout) == (table == "a2d")  # converted once
        (workdir,) = (tmp_path / "runs").iterdir()
        scores = json.loads((workdir / "evaluation" / f"{dataset}-test.json").read_text())
        rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
        assert rows["published"][-1] == {"a2d": "61.2", "jhmdb": "65.2"}[table]
        assert rows["difference"][-1] == f"{100 * scores['paper']['mean_iou'] - float(rows['published'][-1]):+.1f}"

    done = launch(tmp_path, "a2d", "lbdt4", "lbdt1.ckpt")
    assert done.returncode == 2 and "is an LBDT-1" in done.stderr and "Traceback" not in done.stderr
