"""ONNX programs, which onnxruntime and others run: no JAX, and no Python."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import UserError
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.export.programs import flat_weights, make_programs
from lbdt_jax.export.stablehlo import describe_arrays

#: Limit for a protocol buffer, which an ONNX file is.
MAX_BYTES = 2**31 - 2**20


def write_programs(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Writes the programs, with their weights, to a folder, and returns what model.json says about them.

    They compute in float32, whatever `config.model.dtype` is: few runtimes have bfloat16 on CPUs.

    Raises:
      UserError: the package onnx is missing, or a program can't be translated.
    """
    try:
        from lbdt_jax.export import jaxpr_to_onnx
    except ImportError as error:
        raise UserError(f"--format=onnx needs ONNX: pip install -r requirements-onnx.txt ({error})") from error
    config = copy.deepcopy(checkpoint.config)
    config.model.dtype = "float32"
    checkpoint = dataclasses.replace(checkpoint, config=config)
    weights = {name: np.asarray(array, np.float32) for name, array in flat_weights(checkpoint).items()}
    described = {}
    for name, program in make_programs(checkpoint).items():
        traced = jax.jit(program.function).trace(program.weights, *program.inputs)
        # In the order of jax.tree, as the arguments of the traced function are.
        inputs = {key: group[key] for group in program.inputs for key in sorted(group)}
        results = traced.out_info if isinstance(traced.out_info, dict) else {"logits": traced.out_info}
        try:
            model = jaxpr_to_onnx.translate(
                traced.jaxpr, [weights[key] for key in sorted(weights)], inputs, sorted(results), name
            )
        except jaxpr_to_onnx.UnsupportedOperationError as error:
            raise UserError(
                f"The program {name} can't be written as ONNX: lbdt_jax/export/jaxpr_to_onnx.py does not translate "
                f"this operation: {error}. Without --format=onnx it is exported for JAX."
            ) from error
        size = sum(len(constant.raw_data) for constant in model.graph.initializer)
        if size > MAX_BYTES:
            raise UserError(f"The program {name} has {size / 1e9:.1f} GB of weights; an ONNX file holds 2.1 GB.")
        file = f"{name}.onnx"
        (folder / file).write_bytes(model.SerializeToString())
        described[name] = {"file": file, "inputs": describe_arrays(inputs), "outputs": describe_arrays(results)}
    return {"opset": jaxpr_to_onnx.OPSET, "programs": described}
