"""Devices and processes: one mesh axis, `data`. Parameters are replicated, batches are sharded.

Several processes (usually one per machine) run the same program on the same data; only the first one writes files and
prints.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.errors import UserError

DATA_AXIS = "data"

Result = TypeVar("Result")

#: Environment variables that describe the processes of a run where no cluster manager does.
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


# -- Processes


def set_cpu_devices(count: int) -> None:
    """Gives the CPU `count` virtual devices, unless XLA_FLAGS already sets their number. Call it before JAX is used."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", count)


def initialize_distributed() -> None:
    """Connects to the other processes of this run, if there are any. Call it before JAX is used.

    A run has several processes if JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID are set, in a SLURM step with several tasks, and on TPU VMs. On SLURM and TPU VMs, JAX finds the
    other processes by itself.

    Raises:
      UserError: some of the three variables are missing or wrong, or another program listens at process 0's port.
    """
    address, *numbers = (os.environ.get(name, "") for name in PROCESS_VARIABLES)
    if any((address, *numbers)):
        host, _, port = address.rpartition(":")
        valid = host and all(number.isdecimal() for number in (port, *numbers)) and 0 < int(port) < 2**16
        if not valid or int(numbers[1]) >= int(numbers[0]):
            raise UserError(
                "To run as one of several processes, set all of JAX_COORDINATOR_ADDRESS (host:port of process 0), "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0 to JAX_NUM_PROCESSES - 1). They are now: "
                + ", ".join(f"{name}={os.environ.get(name, '')!r}" for name in PROCESS_VARIABLES)
                + "."
            )
        process_count, process_index = map(int, numbers)
        if process_index == 0:
            _check_port(int(port))
        # The variables are complete, so a surrounding cluster manager is ignored.
        jax.distributed.initialize(address, process_count, process_index, cluster_detection_method="deactivate")
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        try:
            jax.distributed.initialize()
        except ValueError:  # libtpu is installed, but this is not a TPU VM
            return


def _check_port(port: int) -> None:
    """Raises UserError if a program listens at a port: JAX would share it with another run, and mix their processes."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"The port {port} of JAX_COORDINATOR_ADDRESS can't be used: {os.strerror(error.errno or 0)}. If another "
            "run uses it, choose another one, the same for all processes."
        ) from error


def warm_up_collectives() -> None:
    """Connects the devices of all processes with each other. Call it while no process has work to do yet.

    gloo, which connects CPUs, gives up when one process enters the first collective half a minute after another, and
    compilation can delay a process by more than that. Later collectives wait without a limit.
    """
    if jax.process_count() > 1:
        mesh = make_mesh()
        ones = shard_batch({"ones": np.ones(jax.local_device_count(), np.float32)}, mesh)["ones"]
        jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones))


def is_first_process() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def run_sequentially(action: Callable[[], Result]) -> Result:
    """Runs `action` in one process after the other, so that later ones find the files that the first one wrote.

    Returns:
      The result of `action` in this process.
    """
    for process_index in range(jax.process_count()):
        if process_index == jax.process_index():
            result = action()
        multihost_utils.sync_global_devices(f"run_sequentially: process {process_index}")
    return result


def broadcast_from_first_process(value: int) -> int:
    """Returns the first process's value in all processes. A synchronization point."""
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def all_gather_object(value: Any) -> list[Any]:
    """Returns the values of all processes, in process order, in all processes. A synchronization point."""
    if jax.process_count() == 1:
        return [value]
    # Pickles are safe here: they come from the processes of this run only.
    pickled = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = np.ravel(multihost_utils.process_allgather(np.asarray(pickled.size)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: pickled.size] = pickled
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


class Stopped(RuntimeError):
    """SIGTERM ended the training. The message names the step that was saved."""


class StopRequest:
    """A context in which SIGTERM, a scheduler's request to stop, and Ctrl-C wait for the end of a step.

    With several processes, JAX handles SIGTERM from `initialize_distributed` on: if it arrives before the first step,
    training stops after that step. A second Ctrl-C takes effect at once. For the main thread only.
    """

    def __enter__(self) -> StopRequest:
        self._received = self._interrupted = False
        # A KeyboardInterrupt that is raised in a callback of the garbage collector, such as JAX's, gets lost.
        self._handles_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._handles_interrupt:
            signal.signal(signal.SIGINT, self._handle_interrupt)
        # With several processes, JAX's own handler informs the other processes.
        self._single_process = not jax.distributed.is_initialized()
        if self._single_process:
            self._previous_handler = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._single_process:
            signal.signal(signal.SIGTERM, self._previous_handler)
        if self._handles_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle_interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        self._received = True

    @property
    def received(self) -> bool:
        """Whether SIGTERM has arrived. With several processes always False: they can only stop after a step.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        return self._received

    def should_stop(self, step: int) -> bool:
        """Whether to stop after this step, the same in all processes. Must be called after every step.

        Raises:
          KeyboardInterrupt: Ctrl-C was pressed.
        """
        received = self.received
        return received if self._single_process else multihost_utils.reached_preemption_sync_point(step)


def exit_on_sigterm() -> None:
    """From now on SIGTERM ends this process at once, even if JAX has installed a handler. Main thread only."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# -- Devices


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes (or of `devices`) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh defaults to an explicit axis, which would need sharding annotations throughout the model.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array to every device."""
    return put_on_devices(tree, NamedSharding(mesh, PartitionSpec()))


def put_on_devices(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Arrays that this process can read -> global arrays with that sharding."""
    # Through the host: if every process has one device, jax.device_put mistakes an array on it for the whole global
    # array, whose other shards are then missing (jax 0.10.2).
    return jax.device_put(jax.device_get(tree), sharding)


def to_local(tree: Any) -> Any:
    """Replicated arrays -> the copies on this process's first device, which it can read without the others."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def shard_batch(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays, sharded over the devices along their first axis.

    Raises:
      ValueError: the first axis is not a multiple of this process's number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
