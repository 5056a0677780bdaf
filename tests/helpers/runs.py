"""Runs lbdt_jax.main in subprocesses, with a tiny network on a few scenes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from paths import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_config

from input_pipeline.moving_shapes.raw_layout import write_raw

SCENES = {"train": 3, "validation": 1, "test": 3, "unseen_words": 2}
FEW_IMAGES = {"contact_sheet_samples": 2, "evaluation_attention_sheets": 0, "picture_every_steps": 1000}


def write_config(folder: Path, steps: int, **fields: object) -> Path:
    """Generates some scenes, and writes FOLDER/tiny_shapes.py, a configuration for `steps` steps on them."""
    write_raw(folder / "data" / "raw" / "moving_shapes", scenes=SCENES, workers=1)
    config = tiny_config()
    config.update(dataset="moving_shapes", data_dir=str(folder / "data"), word_vectors="random:8", log_every_steps=1)
    config.update_from_flattened_dict(FEW_IMAGES | {"cpu_devices": 8} | fields)
    config.epochs = steps / (56 // config.batch_size)  # 56 sentences
    path = folder / "tiny_shapes.py"
    path.write_text(
        "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return path


#: Environment for runs of many steps: on slow cores, a step without XLA's optimizations takes seconds.
OPTIMIZED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def start(
    config: Path, workdir: Path, *arguments: str, kilobytes_per_file: int | str = "unlimited", **environment: str
) -> subprocess.Popen[str]:
    """Starts the command with a limit on the size of files and additional environment variables."""
    # A background shell, which may run the tests, ignores Ctrl-C for all that it starts.
    python = ["env", "--default-signal=INT", sys.executable]
    command = [*python, "-m", "lbdt_jax.main", f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        ["bash", "-c", f'ulimit -f {kilobytes_per_file} && exec "$@"', "bash", *command],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation takes longer than computation
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_processes(
    count: int, config: Path, workdir: Path, *arguments: str, devices: int = 8, **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts the command in `count` processes with `devices` devices in total."""
    arguments = (*arguments, f"--config.cpu_devices={devices // count}")
    return [start(config, workdir, *arguments, **variables, **environment) for variables in process_environments(count)]


def process_environments(count: int) -> list[dict[str, str]]:
    """The environment variables that connect each of `count` processes to the others."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        address = f"localhost:{unused.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [{**common, "JAX_PROCESS_ID": str(index)} for index in range(count)]


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """Waits for a process, checks its status and that it printed no traceback. Returns (stdout, stderr)."""
    try:
        output, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == status, errors[-3000:]
    assert "Traceback" not in errors or status == -signal.SIGKILL
    return output, errors


def logged(workdir: Path, name: str) -> dict[int, float]:
    """Returns step -> value of a logged metric, from all event files."""
    values = {}
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"tensors": 0})
        events.Reload()
        for event in events.Tensors(name) if name in events.Tags()["tensors"] else ():
            value = np.frombuffer(event.tensor_proto.tensor_content, np.float32)
            values[event.step] = float(value[0] if value.size else event.tensor_proto.float_val[0])
    return values
