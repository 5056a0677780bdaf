"""Devices and processes: one mesh axis, `data`. Parameters are replicated, batches are split.

Several processes (one for each machine, usually) run the same program on the same data; the first of them writes.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError

DATA_AXIS = "data"

Result = TypeVar("Result")

#: What tells a process of the others, where no cluster does.
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def set_cpu_devices(number: int) -> None:
    """Makes the CPU so many virtual devices, unless XLA_FLAGS says how many. JAX must not have been used yet."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", number)


def connect() -> None:
    """Joins the other processes of this run, if the environment tells of any. JAX must not have been used yet.

    It does so by JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; in a step of
    SLURM with several tasks; and on TPU VMs. There JAX finds out by itself who the others are.

    Raises:
      UserError: some of the three variables are missing, or are no numbers.
    """
    address, *numbers = (os.environ.get(name, "") for name in PROCESS_VARIABLES)
    if any((address, *numbers)):
        if not address or not all(number.isdecimal() for number in numbers):
            raise UserError(
                "To run as one of several processes, set all of JAX_COORDINATOR_ADDRESS (host:port of process 0), "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0); found are "
                + ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in PROCESS_VARIABLES)
                + "."
            )
        processes, process = map(int, numbers)
        # The cluster around it, if there is one, is not asked: all has been said.
        jax.distributed.initialize(address, processes, process, cluster_detection_method="deactivate")
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        try:
            jax.distributed.initialize()
        except ValueError:  # JAX found no TPU VM around it: an ordinary machine
            return


def warm_up_collectives() -> None:
    """Connects the devices of all processes with each other; to be called while none of them has work to do yet.

    gloo, which joins CPUs, gives up when one process comes to the first sum over all devices half a minute after
    another. Compiling can take that much longer in one of them. At later sums they wait for each other.
    """
    if jax.process_count() > 1:
        mesh = make_mesh()
        one_each = split({"ones": np.ones(jax.local_device_count(), np.float32)}, mesh)["ones"]
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(one_each))


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def run_sequentially(action: Callable[[], Result]) -> Result:
    """Does something in one process after the other: what the first makes, the others find. Returns its result here."""
    for process in range(jax.process_count()):
        if process == jax.process_index():
            result = action()
        multihost_utils.sync_global_devices(f"turn of process {process}")
    return result


def broadcast_from_first_process(value: int) -> int:
    """The first process's value, in all of them; they wait for each other."""
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def gather(value: Any) -> list[Any]:
    """Every process's value, in all of them, in order; they wait for each other."""
    if jax.process_count() == 1:
        return [value]
    # A pickle, which never leaves the processes of a run.
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(content.size))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: content.size] = content
    every = multihost_utils.process_allgather(padded)
    return [pickle.loads(one[:length].tobytes()) for one, length in zip(every, np.ravel(lengths), strict=True)]


class Stopped(RuntimeError):
    """Training was asked to stop, and did. The message names the step that was saved."""


class StopRequest:
    """SIGTERM, by which schedulers ask for the machine: a context in which it no longer kills. Main thread only.

    In several processes JAX keeps it from `connect` on: what arrives before the first step stops behind it.
    """

    def __enter__(self) -> StopRequest:
        self._noticed = False
        # In several processes JAX has a handler of its own, which tells the others.
        self._handles = not jax.distributed.is_initialized()
        if self._handles:
            self._usual = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._usual)

    def _notice(self, *signal_and_frame: object) -> None:
        self._noticed = True

    def reached(self, step: int) -> bool:
        """Whether to stop after this step, the same in all processes; to be asked after every step."""
        return self._noticed if self._handles else multihost_utils.reached_preemption_sync_point(step)


def end_on_sigterm() -> None:
    """From now on SIGTERM ends this process at once, also where JAX has kept it so far. Main thread only."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or `devices`) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh would make the axis explicit, which asks for sharding annotations throughout the model.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device."""
    return put(tree, NamedSharding(mesh, PartitionSpec()))


def put(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Arrays that this process can read -> arrays of that sharding, over all processes."""
    # By way of the host: where each of several processes has one device, jax.device_put takes an array that lies on it
    # for all that there is of the result, whose parts can't be read then (seen in jax 0.10.2).
    return jax.device_put(jax.device_get(tree), sharding)


def local(tree: Any) -> Any:
    """Of replicated arrays the copy on this process's first device, which is all that it can read by itself."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def split(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays, split over devices along their first axis.

    Raises:
      ValueError: the first axis is no multiple of this process's number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
