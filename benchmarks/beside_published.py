"""The published PyTorch code and ours in turns, on the same cores, with the same weights and inputs.

    git clone https://github.com/dzh19990407/LBDT published
    PYTHONPATH=.:tests/golden python tests/beside_published.py published forward|ask|train [--dtype=bfloat16]

LBDT-4 at 320x320 in float32: the forward pass, the forward pass for several sentences about each frame pair, or a
training step with AdamW; ours may compute in another dtype, and theirs with --best_effort by what PyTorch offers today:
autocast to bfloat16, channels last, torch.compile. Needs requirements-torch.txt, and PyTorch for the GPU with
--device=cuda. Each lives in a process of its own with the environment of this one; GLIBC_TUNABLES, which README
recommends to our users, reaches theirs only by --same_environment. A turn is several calls one after the other, as in
training and evaluation; the first is not counted. Prints the median of every turn in seconds, on the clock and of all
cores together, the medians of all turns, the quartiles of the ratio of neighbours, and how far the logits are apart, or
the losses of the first step, for which each draws its own dropout.
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
from lbdt_jax.models.lbdt import normalize
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, shard_batch
from lbdt_jax.step import initial_state, make_model, make_train_step

VARIANT = "lbdt4_r50"


def published_network(folder: Path, device: str) -> torch.nn.Module:
    """Their LBDT-4 with the weights of the golden files. It calls .cuda() on position encodings."""
    torch.Tensor.cuda = lambda tensor, *arguments, **fields: tensor.to(device)
    sys.path.insert(0, str(folder.absolute()))
    from models import LBDT_4
    from models.modeling.resnet import resnet50

    network = LBDT_4.JointModel(image_encoder=resnet50(), flow_encoder=resnet50())
    network.load_state_dict({name: torch.from_numpy(array) for name, array in torch_state(VARIANT).items()})
    return network.to(device)


def best_effort(network: torch.nn.Module, device: str) -> Callable[..., torch.Tensor]:
    """Their network as fast as PyTorch makes it without a change to its code."""
    torch.backends.cudnn.benchmark = True
    compiled = torch.compile(network.to(memory_format=torch.channels_last))

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = compiled(*inputs)
        return logits.float()

    return run


def published_inputs(batch: Batch, sentences: int, device: str) -> list[list[torch.Tensor]]:
    """What their network reads of a batch, in as many parts as sentences: it looks at each sentence's own frames."""
    frame, earlier_frame = (np.asarray(normalize(jnp.asarray(batch[name]))) for name in ("frame", "earlier_frame"))
    pairs = np.repeat(np.stack([frame, np.abs(frame - earlier_frame)]), sentences, axis=1).transpose(0, 1, 4, 2, 3)
    image_mask = np.ones((len(batch["words"]), 100), np.int64)
    arrays = (*pairs, batch["words"], batch["word_mask"].astype(np.int64), image_mask)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
    return [list(part) for part in zip(*(tensor.chunk(sentences) for tensor in tensors), strict=True)]


def published_forward_pass(batch: Batch, asked: argparse.Namespace) -> Callable[[], np.ndarray]:
    """A function that returns their logits (B, H, W)."""
    network = published_network(asked.published, asked.device).eval()
    apply = best_effort(network, asked.device) if asked.best_effort else network
    parts = published_inputs(batch, asked.sentences, asked.device)

    @torch.no_grad()
    def run() -> np.ndarray:
        return torch.cat([apply(*part) for part in parts]).cpu().numpy()

    return run


def published_training_step(batch: Batch, asked: argparse.Namespace) -> Callable[[], float]:
    """A function that takes a step of theirs and returns its loss."""
    network = published_network(asked.published, asked.device).train()
    apply = best_effort(network, asked.device) if asked.best_effort else network
    (inputs,) = published_inputs(batch, 1, asked.device)
    target = torch.from_numpy(batch["target"].astype(np.float32)).to(asked.device)
    weight = torch.tensor([1.5], device=asked.device)
    fused = asked.best_effort or None
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=5e-4, fused=fused)

    def run() -> float:
        logits = apply(*inputs)
        bce = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        probability = torch.clamp(torch.sigmoid(logits), 1e-4, 1 - 1e-4).flatten(1)
        truth = target.flatten(1)
        dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
        loss = 0.5 * bce + 0.5 * dice.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def our_forward_pass(batch: Batch, dtype: str) -> Callable[[], np.ndarray]:
    """A function that returns our logits (B, H, W)."""
    model, variables = published_model(VARIANT, dtype)
    apply, variables = jax.jit(model.apply), jax.device_put(variables)
    inputs = [jnp.asarray(batch[name]) for name in MODEL_FIELDS]
    return lambda: np.asarray(apply(variables, *inputs))


def our_training_step(batch: Batch, dtype: str) -> Callable[[], float]:
    """A function that takes a step of ours and returns its loss."""
    config, mesh = a2d.get_config(), make_mesh()
    config.model.dtype = dtype
    optimizer = make_optimizer(config, steps_per_epoch=1000)
    _, variables = published_model(VARIANT, "float32")
    state = replicate(initial_state(variables, optimizer), mesh)
    on_device = shard_batch({name: batch[name] for name in (*MODEL_FIELDS, "target")}, mesh)
    step = make_train_step(make_model(config), optimizer, config, mesh)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, on_device)
        return float(metrics["loss"])

    return run


def time_call(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, on the clock and of all cores together."""
    started = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def take_turns(connection: Connection, published: bool, asked: argparse.Namespace) -> None:
    """In a process of its own: sends the first result, then at each True it gets the medians of a turn's seconds."""
    batch = random_batch(asked.batch_size * asked.sentences, sentences_per_frame=asked.sentences)
    training = asked.what == "train"
    if published:
        run = (published_training_step if training else published_forward_pass)(batch, asked)
    else:
        run = (our_training_step if training else our_forward_pass)(batch, asked.dtype)
    connection.send(np.asarray(run()))
    while connection.recv():
        connection.send(np.median([time_call(run) for _ in range(1 + asked.calls)][1:], axis=0))


def start(published: bool, asked: argparse.Namespace) -> Connection:
    """Starts `take_turns` of one of the two and returns what speaks with it."""
    tunables = os.environ.get("GLIBC_TUNABLES")
    if published and not asked.same_environment:
        os.environ.pop("GLIBC_TUNABLES", None)
    # JAX fails where it has no such device, and leaves a GPU its memory; theirs needs JAX on the CPU only.
    os.environ["JAX_PLATFORMS"] = "cpu" if published else asked.device
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    processes = multiprocessing.get_context("spawn")  # glibc reads its settings when a program starts
    here, there = processes.Pipe()
    processes.Process(target=take_turns, args=(there, published, asked), daemon=True).start()
    there.close()
    if tunables is not None:
        os.environ["GLIBC_TUNABLES"] = tunables
    return here


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path)
    parser.add_argument("what", choices=("forward", "ask", "train"))
    parser.add_argument("--batch_size", type=int, default=8, help="frame pairs")
    parser.add_argument("--sentences", type=int, default=4, help="about each frame pair, for ask")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="of a turn, besides its first")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our computation")
    parser.add_argument("--same_environment", action="store_true", help="theirs has our GLIBC_TUNABLES, too")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both")
    parser.add_argument("--best_effort", action="store_true", help="theirs as fast as PyTorch makes it")
    asked = parser.parse_args()
    if asked.what != "ask":
        asked.sentences = 1
    # One after the other, so that neither compiles while the other one works.
    sides, first = [], []
    for published in (True, False):
        sides.append(start(published, asked))
        first.append(sides[-1].recv())
    print(f"Apart by {np.abs(first[0] - first[1]).max():.2g}, of {np.abs(first[0]).max():.3g}.")
    seconds = np.zeros((asked.rounds, 2, 2))  # on the clock and of the cores
    for medians in seconds:
        for index, side in enumerate(sides):
            side.send(True)
            medians[:, index] = side.recv()
        print("published {:.2f} s, ours {:.2f} s; of the cores {:.2f} and {:.2f} s".format(*medians.flat), flush=True)
    for side in sides:
        side.send(False)
    for clock, (published, ours) in zip(("on the clock", "of the cores"), seconds.transpose(1, 2, 0), strict=True):
        ratio = np.quantile(published / ours, (0.25, 0.5, 0.75))
        print(f"Seconds {clock}, medians: published {np.median(published):.2f}, ours {np.median(ours):.2f}.")
        print(f"Ours is {ratio[1]:.2f} times as fast ({ratio[0]:.2f} to {ratio[2]:.2f}).")


if __name__ == "__main__":
    main()
