"""Compiles the programs for TPUs that need not be there, and reads what the compiler says of them.

libtpu (requirements-tpu.txt) contains the compiler, which runs on any x86 CPU under Linux. It estimates the cycles of
most instructions of a compiled program; what it leaves out (for one, the pooling of some layouts) and the time of
collectives are missing from the sums. The estimates are the same in every run, and serve to compare programs; only a
TPU tells how long a step takes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from input_pipeline.batch import MODEL_FIELDS
from input_pipeline.errors import UserError
from lbdt_jax.benchmark.measure import (
    DTYPES,
    WORD_VECTOR_SIZE,
    Job,
    check_config,
    describe_row,
    describe_run,
    random_host_batch,
    run_jobs,
)
from lbdt_jax.benchmark.timing import Row, compile_program, shard
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import DATA_AXIS, make_mesh
from lbdt_jax.step import initial_state, initial_variables, is_frozen, make_model, make_train_step


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU, from https://docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
      clock: cycles per second: the peak divided by the operations of its matrix units in a cycle.
      peak: bfloat16 operations per second.
      bandwidth: of its memory, in bytes per second.
      memory: bytes.
    """

    clock: float
    peak: float
    bandwidth: float
    memory: float


#: By jax.Device.device_kind.
CHIPS = {
    "TPU v4": Chip(1.05e9, 275e12, 1228e9, 32e9),
    "TPU v5 lite": Chip(1.5e9, 197e12, 819e9, 16e9),
    "TPU v5": Chip(1.75e9, 459e12, 2765e9, 95e9),
    "TPU v6 lite": Chip(1.75e9, 918e12, 1640e9, 32e9),
}
#: For libtpu: no chip is used, so other processes may use theirs, and libtpu need not look for one.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
#: JAX's setting for the effort of the compiler. Below -.5 it is many times faster and its programs are slow, but their
#: memory and collectives hardly differ.
EFFORT = "JAX_EXEC_TIME_OPTIMIZATION_EFFORT"
#: Instructions that move data between chips.
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
#: Parts of an instruction's op_name that are not modules of the network.
_NOT_MODULES = re.compile(r"(\w+\(.*\)|LBDT\b.*|shard_map|cond|while|body|branch_\d+_fun|closed_call|checkpoint|)$")


def make_topology(name: str) -> tuple[Mesh, Chip]:
    """A mesh of the chips of a topology such as "v5e:2x2", which need not be there, and what they are.

    Raises:
      UserError: libtpu is missing, or knows no such topology.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Chips of this kind have two cores that work as one device.
    options = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    try:
        devices: list[jax.Device] = list(
            topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"--topology={name} can't be compiled for. Expected a kind and a shape, such as v5e:2x2, v5p:2x2x1 or "
            f"v6e:4x4, and libtpu: pip install -r requirements-tpu.txt. The compiler says: {error}"
        ) from error
    kind = devices[0].device_kind
    if kind not in CHIPS:
        raise UserError(f"--topology={name} has devices of the kind {kind}; known are {', '.join(CHIPS)}.")
    return make_mesh(devices), CHIPS[kind]


def estimate_all(
    config: ConfigDict, topology: str, batch_sizes: Sequence[int], sentences: Sequence[int], minutes: float
) -> Iterator[Row]:
    """Compiles the training step, the forward pass and the two inference programs; yields as `measure.benchmark` does.

    Args:
      config: the model, its dtype and the size of its input.
      topology: such as "v5e:2x2".
      batch_sizes: samples per batch, over all chips.
      sentences: numbers of sentences per frame pair.
      minutes: time budget, as for `measure.benchmark`.

    Yields:
      The fields of `measure.benchmark` and "topology"; "ceiling" is from the data sheet. Each row has the fields of a
      measured row, with estimates in place of timings, and
      "fits": whether a chip's memory holds it.
      "bytes_accessed": by all instructions on one chip, of its memory and its caches.
      "operations": the ten costliest parts, {"module", "backward", "seconds"}.
      "collectives": {"kind", "count", "bytes"} on one chip.

    Raises:
      UserError: as `make_topology` and `measure.check_config`.
    """
    mesh, chip = make_topology(topology)
    config = check_config(config, mesh, batch_sizes)
    # Products of float32 matrices are computed from bfloat16 ones by default. The settings of this CPU don't matter.
    ceiling = dict.fromkeys(DTYPES, chip.peak * mesh.size / 1e12)
    effort = {name: value for name, value in os.environ.items() if name == EFFORT}
    result = describe_run(config, mesh, ceiling) | {"topology": topology, "environment": effort}
    yield result
    yield from run_jobs(result, _jobs(config, mesh, batch_sizes, sentences, chip), minutes)


def _jobs(
    config: ConfigDict, mesh: Mesh, batch_sizes: Sequence[int], sentences: Sequence[int], chip: Chip
) -> Iterator[Job]:
    """Every row with the function that compiles it, the most important first."""
    model = make_model(config)
    replicated, sharded = PartitionSpec(), PartitionSpec(DATA_AXIS)
    # The shapes alone: nothing is computed.
    variables = jax.eval_shape(functools.partial(initial_variables, model, config, WORD_VECTOR_SIZE))
    variables = _with_sharding(variables, mesh, replicated)

    def inputs(size: int, count: int, training: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        # The shapes of one frame pair and its sentences, times the number of frame pairs.
        batch = random_host_batch(config, count, count, training)
        shapes = {
            name: jax.ShapeDtypeStruct((len(array) * (size // count), *array.shape[1:]), array.dtype)
            for name, array in batch.items()
            if training or name != "target"
        }
        return _with_sharding(shapes, mesh, sharded)

    def compile_row(function: Any, *arguments: Any, samples: int) -> Row:
        compiled, row = compile_program(function, arguments, mesh)
        return row | estimate(compiled, row, chip, samples)

    def training_step(size: int) -> Row:
        optimizer = make_optimizer(config, steps_per_epoch=1000)
        state = jax.eval_shape(lambda v: initial_state(v, optimizer, is_frozen(config)), variables)
        state = _with_sharding(state, mesh, replicated)
        step = make_train_step(model, optimizer, config, mesh)
        return compile_row(step, state, inputs(size, config.sentences_per_frame, training=True), samples=size)

    def forward(size: int, count: int) -> Row:
        program = shard(model.apply, mesh, (replicated, *[sharded] * len(MODEL_FIELDS)))
        batch = inputs(size * count, count)
        return compile_row(program, variables, *(batch[name] for name in MODEL_FIELDS), samples=size * count)

    def encode(size: int) -> Row:
        batch = inputs(size, 1)
        program = shard(functools.partial(model.apply, method=LBDT.encode), mesh, (replicated, sharded, sharded))
        return compile_row(program, variables, batch["frame"], batch["earlier_frame"], samples=size)

    def segment(size: int, count: int) -> Row:
        batch = inputs(size * count, count)
        features = jax.eval_shape(
            functools.partial(model.apply, method=LBDT.encode), variables, batch["frame"], batch["earlier_frame"]
        )
        features = _with_sharding(features, mesh, sharded)

        def program(variables: Any, features: Any, words: Any, word_mask: Any) -> Any:
            features = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), features)
            return model.apply(variables, features, words, word_mask, method=LBDT.segment)

        arguments = (variables, features, batch["words"], batch["word_mask"])
        return compile_row(shard(program, mesh, (replicated, *[sharded] * 3)), *arguments, samples=size * count)

    for size in batch_sizes:
        yield describe_row("training step", size, config.sentences_per_frame), functools.partial(training_step, size)
    for size in batch_sizes:
        yield describe_row("encode", size, 1), functools.partial(encode, size)
        for count in sentences:
            yield describe_row("segment", size * count, count), functools.partial(segment, size, count)
    for count in sentences:
        size = batch_sizes[0]
        yield describe_row("forward", size * count, count), functools.partial(forward, size, count)


def _with_sharding(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The shapes and dtypes of arrays, on the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree)


def estimate(compiled: jax.stages.Compiled, row: Row, chip: Chip, samples: int) -> Row:
    """What the compiler says of a program that processes `samples` samples; `row` is of `compile_program`.

    Returns:
      The fields that `estimate_all` names.
    """
    analysis: Any = compiled.cost_analysis()
    cycles, collectives = read_program(compiled.as_text() or "")
    seconds = sum(cycles.values()) / chip.clock
    return {
        "fits": row["memory_bytes"] <= chip.memory,
        "bytes_accessed": analysis["bytes accessed"],
        "samples_per_second": samples / seconds,
        "seconds": {"median": seconds, "lower_quartile": seconds, "upper_quartile": seconds, "timings": 0},
        "tflops_per_second": row["flop"] / seconds / 1e12,
        "operations": [
            {"module": module, "backward": backward, "seconds": count / chip.clock}
            for (module, backward), count in cycles.most_common(10)
        ],
        "collectives": collectives,
    }


# -- The program's text


def read_program(text: str) -> tuple[Counter[tuple[str, bool]], list[Row]]:
    """Reads a program compiled for TPUs, as `jax.stages.Compiled.as_text` returns it.

    Returns:
      The estimated cycles by (module, whether they are of the backward pass), loops counted as often as they run; and
      the collectives, {"kind", "count", "bytes"}, bytes being those of their results.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name and " = " in line:
            computations[name].append(line)

    cycles: Counter[tuple[str, bool]] = Counter()
    collectives: dict[str, Row] = {}

    def add(computation: str, times: int) -> None:
        for line in computations.get(computation, []):
            if estimated := re.search(r'"estimated_cycles":"(\d+)"', line):
                op_name = re.search(r'op_name="([^"]*)"', line)
                cycles[module_of(op_name[1] if op_name else "")] += int(estimated[1]) * times
            # Of an asynchronous pair, the second half has the result alone.
            if match := re.search(rf" = (.+?) ({'|'.join(COLLECTIVES)})(-done)?\(", line):
                row = collectives.setdefault(match[2], {"kind": match[2], "count": 0, "bytes": 0})
                row["count"] += times
                row["bytes"] += times * shape_bytes(match[1])
            if body := re.search(r" while\(.*body=%?([\w.-]+)", line):
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                add(body[1], times * int(trips[1] if trips else 1))

    add(entry, 1)
    return cycles, list(collectives.values())


def module_of(op_name: str) -> tuple[str, bool]:
    """The first three modules of an instruction's op_name, and whether it belongs to the backward pass.

    "jit(f)/transpose(jvp(LBDT))/head/tower_0/norm/reduce_sum" gives ("head/tower_0/norm", True). Instructions outside
    the network are named by their operation; copies between layouts have no name.
    """
    *parts, operation = op_name.split("/")
    modules = [part.split(".")[0] for part in parts if not _NOT_MODULES.match(part)]
    return "/".join(modules[:3]) or f"({operation or 'copies and layouts'})", "transpose(" in op_name


def shape_bytes(shape: str) -> int:
    """Bytes of an array's or a tuple's type in a program's text, such as "(f32[8,16]{1,0}, bf16[4])"."""
    total = 0
    # The bits of a dtype are the first number in its name, as in f8e4m3fn; booleans have none.
    for bits, sizes in re.findall(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]", shape):
        total += int(bits or 8) * math.prod(int(size) for size in sizes.split(",") if size) // 8
    return total


def details(row: Row, chip_count: int) -> str:
    """Lines below a row of the table: memory traffic, collectives, and the costliest parts."""
    fits = "" if row["fits"] else "; DOES NOT FIT into a chip's memory"
    lines = [f"memory traffic of a chip {row['bytes_accessed'] / 1e9:.1f} GB{fits}"]
    for collective in row["collectives"]:
        lines.append(f"{collective['count']} {collective['kind']}: {collective['bytes'] / 1e6:.1f} MB")
    if not row["collectives"] and chip_count > 1:
        lines.append("no collectives")
    total = row["seconds"]["median"]
    for operation in row["operations"]:
        direction = " (backward)" if operation["backward"] else ""
        seconds = operation["seconds"]
        lines.append(f"{1000 * seconds:9.3f} ms {seconds / total:6.1%}  {operation['module']}{direction}")
    return "\n".join(f"    {line}" for line in lines)
