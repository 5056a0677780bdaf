"""Devices and processes: one mesh axis, `data`. Parameters are replicated, batches are split."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def set_cpu_devices(number: int) -> None:
    """Makes the CPU so many virtual devices, unless XLA_FLAGS says how many. JAX must not have been used yet."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", number)


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """All devices of all processes (or `devices`) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    # jax.make_mesh would make the axis explicit, which asks for sharding annotations throughout the model.
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(arrays: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays, split over devices along their first axis.

    Raises:
      ValueError: the first axis is no multiple of this process's number of devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in arrays.items()}
