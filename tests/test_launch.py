"""The scripts in launch/: the paper's tables on a made-up dataset, and the commands for other machines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_datasets import write_a2d, write_jhmdb
from paths import ROOT
from published import torch_state

from lbdt_jax.parallel import PROCESS_VARIABLES


def run_published(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs launch/published.sh in a folder outside the repository, with the repository on the Python path."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
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
def test_published_rejects_invalid_arguments(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run_published(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_both_tables_are_reproduced_from_one_released_checkpoint(tmp_path: Path) -> None:
    import torch

    state = {name: torch.from_numpy(np.array(array)) for name, array in torch_state("lbdt1_r50").items()}
    torch.save({f"module.{name}": array for name, array in state.items()}, tmp_path / "lbdt1.ckpt")
    raw = tmp_path / "data" / "raw"
    write_a2d(raw / "a2d_sentences")
    write_jhmdb(raw / "jhmdb_sentences")
    vector = " ".join(["0.25", "-0.5"] * 150)
    words = ["the", "man", "in", "red", "cat", "is", "jumping", "black", "a", "woman", "running", "clapping"]
    (tmp_path / "data" / "glove.840B.300d.txt").write_text("".join(f"{word} {vector}\n" for word in words))

    # Small batches: the miniature dataset has only a few frames.
    small_batches = (
        "--config.evaluation_frames=1",
        "--config.evaluation_sentences=1",
        "--config.evaluation_attention_sheets=0",
    )
    for table, dataset in (("a2d", "a2d_sentences"), ("jhmdb", "jhmdb_sentences")):
        done = run_published(tmp_path, table, "lbdt1", "lbdt1.ckpt", *small_batches)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("LBDT-1 with ResNet-50" in done.stdout) == (table == "a2d")  # converted for the first table only
        (workdir,) = (tmp_path / "runs").iterdir()
        scores = json.loads((workdir / "evaluation" / f"{dataset}-test.json").read_text())
        rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
        assert rows["published"][-1] == {"a2d": "61.2", "jhmdb": "65.2"}[table]
        assert rows["difference"][-1] == f"{100 * scores['paper']['mean_iou'] - float(rows['published'][-1]):+.1f}"

    done = run_published(tmp_path, "a2d", "lbdt4", "lbdt1.ckpt")
    assert done.returncode == 2 and "is an LBDT-1" in done.stderr and "Traceback" not in done.stderr


# -- the commands for other machines

ARGUMENTS = ("--config=configs/a2d.py", "--workdir=/shared/runs/a 2", '--config.raw="x"')


def dry_run(script: str, folder: Path, *arguments: str, **environment: str) -> str:
    command = [str(ROOT / "launch" / script), "--dry-run", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_local_dry_run(tmp_path: Path) -> None:
    assert shlex.split(dry_run("local.sh", tmp_path, *ARGUMENTS)) == ["python", "-m", "lbdt_jax.main", *ARGUMENTS]
    lines = dry_run("local.sh", tmp_path, "--processes=2", *ARGUMENTS, PORT="1234").splitlines()
    for process, line in enumerate(lines):
        assert shlex.split(line) == [
            "JAX_COORDINATOR_ADDRESS=localhost:1234",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={process}",
            *("python", "-m", "lbdt_jax.main", *ARGUMENTS),
        ]
    assert len(lines) == 2
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    first, second = (dry_run("local.sh", tmp_path, "--processes=2", *ARGUMENTS, PATH=path).split()[0] for _ in range(2))
    assert first != second  # two runs on one machine keep apart


def test_slurm_dry_run(tmp_path: Path) -> None:
    node = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}
    assert shlex.split(dry_run("slurm.sh", tmp_path, *ARGUMENTS, **node)) == [
        *("JAX_LOCAL_DEVICE_IDS=0,1,2,3", "srun", "--kill-on-bad-exit=1", "--cpus-per-task=32"),
        *("python", "-m", "lbdt_jax.main", *ARGUMENTS),
    ]
    options = re.findall(r"^#SBATCH --([a-z-]+)", (ROOT / "launch" / "slurm.sh").read_text(), re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "requeue", "signal"} <= set(options)


def write_programs(folder: Path, **programs: str) -> dict[str, str]:
    """Writes bash scripts that replace programs, and returns an environment with them on the PATH."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 20
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.05)


def test_slurm_forwards_sigterm_and_requeues(tmp_path: Path) -> None:
    environment = write_programs(
        tmp_path,
        srun='trap "sleep 1; echo saved >> calls; exit 143" TERM\necho $$ > new\nmv new step\n'
        "while :; do sleep 0.05; done\n",
        scancel='echo "scancel $*" >> calls\nkill -TERM $(<step)\n',
        scontrol='echo "scontrol $*" >> calls\n',
    )
    process = subprocess.Popen(
        [str(ROOT / "launch" / "slurm.sh"), "--config=a", "--workdir=b"],
        cwd=tmp_path,
        env={**environment, "SLURM_JOB_ID": "7"},
    )
    wait_for(tmp_path / "step")
    process.terminate()
    assert process.wait(timeout=10) == 143
    assert (tmp_path / "calls").read_text().splitlines() == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


def test_local_stops_the_processes_that_it_was_still_starting(tmp_path: Path) -> None:
    environment = write_programs(
        tmp_path,
        python='[[ $JAX_PROCESS_ID == 0 ]] && kill -TERM $PPID\ntrap "exit 143" TERM\nwhile :; do sleep 0.05; done\n',
    )
    process = subprocess.Popen(
        [str(ROOT / "launch" / "local.sh"), "--processes=20", "--config=a", "--workdir=b"],
        cwd=tmp_path,
        env={**environment, "PORT": "1"},
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=300) == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_tpu_vm_dry_run(tmp_path: Path) -> None:
    printed = dry_run("tpu_vm.sh", tmp_path, *ARGUMENTS, TPU="pod", ZONE="us-central2-b", PROJECT="mine")
    # The command for the hosts spans several lines in bash quoting, which shlex can't parse.
    words = subprocess.run(
        ["bash", "-c", f"for word in {printed.replace(chr(10), ' ')}; do printf '%s\\0' \"$word\"; done"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    where = ["--zone=us-central2-b", "--project=mine", "--worker=all"]
    archive = "/tmp/lbdt_jax.tar.gz"
    assert words[:5] == ["git", "archive", "--format=tar.gz", f"--output={archive}", "HEAD"]
    assert words[5:-1] == [
        *("gcloud", "compute", "tpus", "tpu-vm", "scp", archive, f"pod:{archive}", *where),
        *("gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", *where, words[-2]),
    ]
    last = words[-2].splitlines()[-1]
    assert shlex.split(last) == ["exec", "python", "-m", "lbdt_jax.main", *ARGUMENTS]


def test_kubernetes_dry_run(tmp_path: Path) -> None:
    printed = dry_run(
        "kubernetes.sh", tmp_path, *ARGUMENTS, IMAGE="registry/lbdt:1", CLAIM="disk", NODES="4", NAME="a2d"
    )
    manifest = yaml.safe_load(printed)
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "a2d")
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (4, 4, "Indexed")
    (container,) = job["template"]["spec"]["containers"]
    assert container["image"] == "registry/lbdt:1"
    assert container["command"] == ["python", "-m", "lbdt_jax.main", *ARGUMENTS]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert set(variables) == set(PROCESS_VARIABLES)
    assert variables["JAX_COORDINATOR_ADDRESS"] == f"a2d-{workers['name']}-0-0.a2d:12355"
    assert variables["JAX_NUM_PROCESSES"] == "4"
    # User errors are not retried.
    assert manifest["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
    assert rule["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_vm.sh", "kubernetes.sh"])
def test_missing_arguments_print_the_usage(script: str, tmp_path: Path) -> None:
    for arguments in ([], ["--dry-run", "--config=configs/a2d.py"]):
        done = subprocess.run([str(ROOT / "launch" / script), *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_local_runs_both_processes_and_returns_the_status_of_a_failure(tmp_path: Path) -> None:
    """Python is replaced by a script that prints its process id and arguments, and then waits for SIGTERM or fails."""
    environment = write_programs(
        tmp_path,
        python='echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"\n'
        'if [[ $* == *wait* ]]; then trap "exit 143" TERM; touch "$JAX_PROCESS_ID"; while :; do sleep 0.05; done; fi\n'
        "if [[ $* == *fail* && $JAX_PROCESS_ID == 1 ]]; then exit 2; fi\n",
        sleep="exec /bin/sleep 0.05\n",  # launch/local.sh waits for the other process to report the failure
    )
    command = [str(ROOT / "launch" / "local.sh"), "--processes=2", "--config=a", "--workdir=b"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        f"{process} of 2: -m lbdt_jax.main --config=a --workdir=b" for process in range(2)
    ]
    done = subprocess.run([*command, "--fail"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = subprocess.Popen(
            # bash can't trap signals that are ignored when it starts: SIGINT in background jobs, SIGHUP under nohup.
            ["env", "--default-signal=INT,HUP", *command, "--wait"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(tmp_path / "0", tmp_path / "1")
            os.killpg(process.pid, signal_number)  # as a terminal does
            assert process.wait(timeout=10) == 143
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        (tmp_path / "0").unlink()
        (tmp_path / "1").unlink()
