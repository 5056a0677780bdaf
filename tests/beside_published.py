"""The published PyTorch code and ours in turns, on the same cores, with the same weights and inputs.

    git clone https://github.com/dzh19990407/LBDT published
    PYTHONPATH=.:tests/golden python tests/beside_published.py published forward|ask|train [--dtype=bfloat16]

LBDT-4 at 320x320 in float32: the forward pass, the forward pass for four sentences about each frame pair, or a training
step with AdamW; ours may compute in another dtype. Needs requirements-torch.txt. A turn is several calls one after the
other, as in training and evaluation; the first is not counted, since it pays for memory that the other one gave back.
Prints the median of every turn in seconds, on the clock and of all cores together, the medians of all turns, the
quartiles of the ratio of neighbours, and how far the logits are apart, or the losses of the first step, for which each
draws its own dropout.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
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
from lbdt_jax.models.lbdt import normalise
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate, split
from lbdt_jax.step import initial_state, make_model, make_train_step

VARIANT = "lbdt4_r50"
SENTENCES = {"forward": 1, "ask": 4, "train": 1}


def published_network(folder: Path) -> torch.nn.Module:
    """Their LBDT-4 with the weights of the golden files. It calls .cuda() on position encodings, which stay here."""
    torch.Tensor.cuda = lambda tensor, *arguments, **fields: tensor
    sys.path.insert(0, str(folder.absolute()))
    from models import LBDT_4
    from models.modeling.resnet import resnet50

    network = LBDT_4.JointModel(image_encoder=resnet50(), flow_encoder=resnet50())
    network.load_state_dict({name: torch.from_numpy(array) for name, array in torch_state(VARIANT).items()})
    return network


def published_inputs(batch: Batch, sentences: int) -> list[list[torch.Tensor]]:
    """What their network reads of a batch, in as many parts as sentences: it looks at each sentence's own frames."""
    frame, earlier_frame = (np.asarray(normalise(jnp.asarray(batch[name]))) for name in ("frame", "earlier_frame"))
    pairs = np.repeat(np.stack([frame, np.abs(frame - earlier_frame)]), sentences, axis=1).transpose(0, 1, 4, 2, 3)
    image_mask = np.ones((len(batch["words"]), 100), np.int64)
    arrays = (*pairs, batch["words"], batch["word_mask"].astype(np.int64), image_mask)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return [list(part) for part in zip(*(tensor.chunk(sentences) for tensor in tensors), strict=True)]


def forward_passes(network: torch.nn.Module, batch: Batch, sentences: int, dtype: str) -> tuple[Callable[[], Any], ...]:
    """Theirs and ours, each a function that returns logits (B, H, W)."""
    network.eval()
    parts = published_inputs(batch, sentences)
    model, variables = published_model(VARIANT, dtype)
    apply, variables = jax.jit(model.apply), jax.device_put(variables)
    ours = [jnp.asarray(batch[name]) for name in MODEL_FIELDS]

    @torch.no_grad()
    def run_theirs() -> np.ndarray:
        return torch.cat([network(*part) for part in parts]).numpy()

    return run_theirs, lambda: np.asarray(apply(variables, *ours))


def training_steps(network: torch.nn.Module, batch: Batch, dtype: str) -> tuple[Callable[[], Any], ...]:
    """Theirs and ours, each a function that takes a step and returns its loss."""
    network.train()
    (inputs,) = published_inputs(batch, 1)
    target = torch.from_numpy(batch["target"].astype(np.float32))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=5e-4)

    def run_theirs() -> float:
        logits = network(*inputs)
        bce = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor([1.5]))
        probability = torch.clamp(torch.sigmoid(logits), 1e-4, 1 - 1e-4).flatten(1)
        truth = target.flatten(1)
        dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
        loss = 0.5 * bce + 0.5 * dice.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    config, mesh = a2d.get_config(), make_mesh()
    config.model.dtype = dtype
    ours = make_optimizer(config, steps_per_epoch=1000)
    _, variables = published_model(VARIANT, "float32")
    state = replicate(initial_state(variables, ours), mesh)
    on_device = split({name: batch[name] for name in (*MODEL_FIELDS, "target")}, mesh)
    step = make_train_step(make_model(config), ours, config, mesh)

    def run_ours() -> float:
        nonlocal state
        state, metrics = step(state, on_device)
        return float(metrics["loss"])

    return run_theirs, run_ours


def time_call(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of one call, on the clock and of all cores together."""
    started = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path)
    parser.add_argument("what", choices=SENTENCES)
    parser.add_argument("--batch_size", type=int, default=8, help="frame pairs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3, help="of a turn, besides its first")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of our computation")
    asked = parser.parse_args()
    network, sentences = published_network(asked.published), SENTENCES[asked.what]
    batch = random_batch(asked.batch_size * sentences, sentences_per_frame=sentences)
    if asked.what == "train":
        runs = training_steps(network, batch, asked.dtype)
    else:
        runs = forward_passes(network, batch, sentences, asked.dtype)
    first = [np.asarray(run()) for run in runs]
    print(f"Apart by {np.abs(first[0] - first[1]).max():.2g}, of {np.abs(first[0]).max():.3g}.")
    seconds = np.zeros((asked.rounds, 2, 2))  # on the clock and of the cores
    for medians in seconds:
        for index, run in enumerate(runs):
            medians[:, index] = np.median([time_call(run) for _ in range(1 + asked.calls)][1:], axis=0)
        print("published {:.2f} s, ours {:.2f} s; of the cores {:.2f} and {:.2f} s".format(*medians.flat), flush=True)
    for clock, (published, ours) in zip(("on the clock", "of the cores"), seconds.transpose(1, 2, 0), strict=True):
        ratio = np.quantile(published / ours, (0.25, 0.5, 0.75))
        print(f"Seconds {clock}, medians: published {np.median(published):.2f}, ours {np.median(ours):.2f}.")
        print(f"Ours is {ratio[1]:.2f} times as fast ({ratio[0]:.2f} to {ratio[2]:.2f}).")


if __name__ == "__main__":
    main()
