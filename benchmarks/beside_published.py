"""Compares the speed of the published PyTorch code and of this code: same device, same weights, same inputs.

    git clone https://github.com/dzh19990407/LBDT published
    PYTHONPATH=.:tests/helpers:tests/golden python benchmarks/beside_published.py published forward|sentences|train

LBDT-4 at 320x320 in float32: the forward pass, the forward pass for several sentences per frame pair ("ask" is the
former name of "sentences"), or a training step with AdamW. --dtype=bfloat16 is for this code only; --best_effort makes
the published code as fast as PyTorch can without changes to it: autocast to bfloat16, channels last, torch.compile.
Needs requirements-torch.txt, and PyTorch for the GPU with --device=cuda.

Each code runs in its own process, with the environment of this one; but the published code gets GLIBC_TUNABLES, which
docs/performance.md recommends for this code, only with --same_environment. The two alternate: in every round each makes
several consecutive calls, as in training and evaluation, of which the first is not counted. Printed are the median
seconds of every round, as wall-clock time and as CPU time of all cores, the medians over all rounds, the quartiles of
the ratio of the two codes in a round, and the largest difference between the logits, or between the losses of the first
step (for which each draws its own dropout).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from published import published_model, torch_state
from torch.nn import functional

from configs import a2d
from input_pipeline.batch import MODEL_FIELDS, Batch, random_batch
from lbdt_jax.models.lbdt import normalize_frames
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, shard_batch
from lbdt_jax.step import initial_state, make_model, make_train_step

VARIANT = "lbdt4_r50"


# -- The published code


def published_network(folder: Path, device: str) -> torch.nn.Module:
    """The published LBDT-4 with the weights of the golden files."""
    # The code calls .cuda() on its position encodings.
    setattr(torch.Tensor, "cuda", lambda tensor, *arguments, **options: tensor.to(device))  # noqa: B010
    sys.path.insert(0, str(folder.absolute()))
    from models import LBDT_4
    from models.modeling.resnet import resnet50

    network = LBDT_4.JointModel(image_encoder=resnet50(), flow_encoder=resnet50())
    network.load_state_dict({name: torch.from_numpy(array) for name, array in torch_state(VARIANT).items()})
    return network.to(device)


def best_effort(network: Any, device: str) -> Callable[..., torch.Tensor]:
    """The network as fast as PyTorch makes it without changes to its code."""
    torch.backends.cudnn.benchmark = True
    compiled = torch.compile(network.to(memory_format=torch.channels_last))

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = compiled(*inputs)
        return logits.float()

    return run


def published_inputs(batch: Batch, sentences: int, device: str) -> list[list[torch.Tensor]]:
    """The published network's inputs for a batch, one list per call: it encodes a frame for each of its sentences."""
    frame, earlier_frame = (
        np.asarray(normalize_frames(jnp.asarray(batch[name]))) for name in ("frame", "earlier_frame")
    )
    images = np.repeat(np.stack([frame, np.abs(frame - earlier_frame)]), sentences, axis=1).transpose(0, 1, 4, 2, 3)
    image_mask = np.ones((len(batch["words"]), 100), np.int64)
    arrays = (*images, batch["words"], batch["word_mask"].astype(np.int64), image_mask)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
    return [list(part) for part in zip(*(tensor.chunk(sentences) for tensor in tensors), strict=True)]


def published_forward_pass(batch: Batch, options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """A function that returns the published network's logits (B, H, W)."""
    network = published_network(options.published, options.device).eval()
    apply = best_effort(network, options.device) if options.best_effort else network
    inputs = published_inputs(batch, options.sentences, options.device)

    @torch.no_grad()
    def run() -> np.ndarray:
        logits = torch.cat([apply(*sentence_inputs) for sentence_inputs in inputs])
        return logits.reshape(batch["target"].shape).cpu().numpy()  # the network squeezes a batch of one

    return run


def published_training_step(batch: Batch, options: argparse.Namespace) -> Callable[[], float]:
    """A function that takes a training step of the published network and returns its loss."""
    network = published_network(options.published, options.device).train()
    apply = best_effort(network, options.device) if options.best_effort else network
    (inputs,) = published_inputs(batch, 1, options.device)
    target = torch.from_numpy(batch["target"].astype(np.float32)).to(options.device)
    weight = torch.tensor([1.5], device=options.device)
    fused = options.best_effort or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=5e-4, fused=fused)

    def run() -> float:
        logits = apply(*inputs).reshape(target.shape)  # the network squeezes a batch of one
        bce = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        probability = torch.clamp(torch.sigmoid(logits), 1e-4, 1 - 1e-4).flatten(1)
        mask = target.flatten(1)
        dice = 1 - (2 * (probability * mask).sum(1) + 1) / (probability.sum(1) + mask.sum(1) + 1)
        loss = 0.5 * bce + 0.5 * dice.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


# -- This code


def jax_forward_pass(batch: Batch, options: argparse.Namespace) -> Callable[[], np.ndarray]:
    """A function that returns this model's logits (B, H, W)."""
    model, variables = published_model(VARIANT, options.dtype)
    apply, variables = jax.jit(model.apply), jax.device_put(variables)
    inputs = [jnp.asarray(batch[name]) for name in MODEL_FIELDS]
    return lambda: np.asarray(apply(variables, *inputs))


def jax_training_step(batch: Batch, options: argparse.Namespace) -> Callable[[], float]:
    """A function that takes a training step of this model and returns its loss."""
    config, mesh = a2d.get_config(), make_mesh()
    config.model.dtype = options.dtype
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    _, variables = published_model(VARIANT, "float32")
    state = replicate(initial_state(variables, optimizer), mesh)
    inputs = shard_batch({name: batch[name] for name in (*MODEL_FIELDS, "target")}, mesh)
    step: Any = make_train_step(make_model(config), optimizer, config, mesh)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, inputs)
        return float(metrics["loss"])

    return run


# -- Timing


def time_call(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call: wall-clock time, and CPU time of all cores."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def serve_rounds(connection: Connection, published: bool, options: argparse.Namespace) -> None:
    """Runs in a process of its own: sends the first result, then a round's median seconds for every True received."""
    batch = random_batch(options.batch_size * options.sentences, sentences_per_frame=options.sentences)
    make_run: Callable[[Batch, argparse.Namespace], Callable[[], Any]]
    if options.what == "train":
        make_run = published_training_step if published else jax_training_step
    else:
        make_run = published_forward_pass if published else jax_forward_pass
    run = make_run(batch, options)
    connection.send(np.asarray(run()))
    while connection.recv():
        connection.send(np.median([time_call(run) for _ in range(1 + options.calls)][1:], axis=0))


def start(published: bool, options: argparse.Namespace) -> Connection:
    """Starts the process of one of the two codes and returns the connection to it."""
    tunables = os.environ.get("GLIBC_TUNABLES")
    if published and not options.same_environment:
        os.environ.pop("GLIBC_TUNABLES", None)
    # JAX then fails if the device is missing, and leaves memory of a GPU to PyTorch. The published code needs JAX for
    # its inputs only.
    os.environ["JAX_PLATFORMS"] = "cpu" if published else options.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    processes = multiprocessing.get_context("spawn")  # not "fork": glibc reads its tunables when a program starts
    parent, child = processes.Pipe()
    processes.Process(target=serve_rounds, args=(child, published, options), daemon=True).start()
    child.close()
    if tunables is not None:
        os.environ["GLIBC_TUNABLES"] = tunables
    return parent


def measure_rounds(connections: list[Connection], rounds: int) -> np.ndarray:
    """Median seconds, (rounds, 2, 2): by wall-clock and CPU time, and by published and this code."""
    seconds = np.zeros((rounds, 2, 2))
    for medians in seconds:
        for index, connection in enumerate(connections):
            connection.send(True)
            medians[:, index] = connection.recv()
        print("published {:.2f} s, ours {:.2f} s; CPU time {:.2f} and {:.2f} s".format(*medians.flat), flush=True)
    for connection in connections:
        connection.send(False)
    return seconds


def parse_options() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path, help="folder of the published code")
    parser.add_argument("what", choices=("forward", "sentences", "ask", "train"))
    parser.add_argument("--batch_size", type=int, default=8, help="frame pairs")
    parser.add_argument("--sentences", type=int, default=4, help='per frame pair, for "sentences"')
    parser.add_argument("--rounds", type=int, default=7, help="in which both codes are timed")
    parser.add_argument("--calls", type=int, default=3, help="of each code per round, not counting its first")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of this code")
    parser.add_argument("--same_environment", action="store_true", help="keep GLIBC_TUNABLES for the published code")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both codes")
    parser.add_argument("--best_effort", action="store_true", help="the published code as fast as PyTorch makes it")
    options = parser.parse_args()
    if options.what not in ("sentences", "ask"):
        options.sentences = 1
    return options


def main() -> None:
    """Parses the command line, measures and prints."""
    options = parse_options()
    # One after the other, so that neither compiles while the other one computes.
    connections, results = [], []
    for published in (True, False):
        connections.append(start(published, options))
        results.append(connections[-1].recv())
    difference = np.abs(results[0] - results[1]).max()
    print(f"Largest difference {difference:.2g}, of values up to {np.abs(results[0]).max():.3g}.")
    seconds = measure_rounds(connections, options.rounds)
    for clock, (published, ours) in zip(("wall-clock", "CPU"), seconds.transpose(1, 2, 0), strict=True):
        ratio = np.quantile(published / ours, (0.25, 0.5, 0.75))
        print(f"Median {clock} seconds: published {np.median(published):.2f}, ours {np.median(ours):.2f}.")
        print(f"Ours is {ratio[1]:.2f} times as fast ({ratio[0]:.2f} to {ratio[2]:.2f}).")


if __name__ == "__main__":
    main()
