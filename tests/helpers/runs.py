"""The command, in processes of its own, on a tiny network and a few scenes."""

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
FEW_PICTURES = {"contact_sheet_samples": 2, "evaluation_attention_sheets": 0, "picture_every_steps": 1000}


def write_config(folder: Path, steps: int, **fields: object) -> Path:
    """Draws some scenes and writes FOLDER/tiny_shapes.py, a configuration of so many steps."""
    write_raw(folder / "data" / "raw" / "moving_shapes", scenes=SCENES, workers=1)
    config = tiny_config()
    config.update(dataset="moving_shapes", data_dir=str(folder / "data"), word_vectors="random:8", log_every_steps=1)
    config.update_from_flattened_dict(FEW_PICTURES | {"cpu_devices": 8} | fields)
    config.epochs = steps / (56 // config.batch_size)  # 56 sentences
    path = folder / "tiny_shapes.py"
    path.write_text(
        "import json\n\nfrom ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict(json.loads({config.to_json()!r}))\n"
    )
    return path


#: For what is compiled once and run often; steps without XLA's optimisations take seconds on slow cores.
OPTIMISED = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}


def start(
    config: Path, workdir: Path, *arguments: str, kilobytes_per_file: int | str = "unlimited", **environment: str
) -> subprocess.Popen[str]:
    """Starts the command."""
    command = [sys.executable, "-m", "lbdt_jax.main", f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        ["bash", "-c", f'ulimit -f {kilobytes_per_file} && exec "$@"', "bash", *command],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than computing
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_together(
    number: int, config: Path, workdir: Path, *arguments: str, devices: int = 8, **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts the command in several processes, of so many devices together."""
    arguments = (*arguments, f"--config.cpu_devices={devices // number}")
    return [start(config, workdir, *arguments, **variables, **environment) for variables in described(number)]


def described(number: int) -> list[dict[str, str]]:
    """What tells each of several processes of the others."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{unused.getsockname()[1]}", "JAX_NUM_PROCESSES": str(number)}
    return [{**together, "JAX_PROCESS_ID": str(index)} for index in range(number)]


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """Waits, sees that it ends with that status and without a traceback, and returns what it has printed."""
    try:
        printed, errors = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == status, errors[-3000:]
    assert "Traceback" not in errors or status == -signal.SIGKILL
    return printed, errors


def logged(workdir: Path, name: str) -> dict[int, float]:
    """Step -> a number that training has logged, from all event files."""
    values = {}
    for file in sorted(workdir.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"tensors": 0})
        events.Reload()
        for event in events.Tensors(name) if name in events.Tags()["tensors"] else ():
            value = np.frombuffer(event.tensor_proto.tensor_content, np.float32)
            values[event.step] = float(value[0] if value.size else event.tensor_proto.float_val[0])
    return values
