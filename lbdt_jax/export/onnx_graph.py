"""An ONNX graph that is built node by node."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import onnx
from jax.export import is_symbolic_dim
from onnx import helper, numpy_helper

#: Read by onnxruntime 1.14 (February 2023) and later.
OPSET, IR_VERSION = 18, 8

Shape: TypeAlias = tuple[Any, ...]  # of int, and of jax.export's symbolic dimensions


class UnsupportedOperationError(ValueError):
    """The function has an operation that is not translated."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that the graph computes.

    Attributes:
      name: in the graph.
      shape: in the graph. An axis along which JAX's value is broadcast has length 1: ONNX broadcasts by itself.
    """

    name: str
    shape: Shape


Value: TypeAlias = Tensor | np.ndarray  # computed by the graph, or known when it is built
Equation: TypeAlias = Any  # jax.extend.core.JaxprEqn, whose types do not say that values have shapes


class Graph:
    """A graph of nodes, with the constants that they use.

    Args:
      inputs: name -> shape and dtype; an unknown length is a variable, "B".
    """

    def __init__(self, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self.inputs, self.dimensions = inputs, dict[str, Tensor]()
        for name, array in inputs.items():
            for axis, dim in enumerate(array.shape):
                if is_symbolic_dim(dim) and str(dim) not in self.dimensions:
                    self.dimensions[str(dim)] = self.emit("Shape", [Tensor(name, ())], (1,), start=axis, end=axis + 1)

    def emit(self, operation: str, inputs: Sequence[Value], shape: Shape, **attributes: Any) -> Tensor:
        """Adds a node with one output of that shape."""
        (output,) = self.emit_many(operation, inputs, [shape], **attributes)
        return output

    def emit_many(
        self, operation: str, inputs: Sequence[Value], shapes: Sequence[Shape], **attributes: Any
    ) -> list[Tensor]:
        """Adds a node with one output for each of `shapes`."""
        outputs = [Tensor(f"{operation}_{len(self.nodes)}_{index}", shape) for index, shape in enumerate(shapes)]
        names = [self.name(value) for value in inputs]
        name = f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, names, [x.name for x in outputs], name=name, **attributes))
        return outputs

    def name(self, value: Value) -> str:
        """The name of a value in the graph. Known values become constants, one for all that are equal."""
        if isinstance(value, Tensor):
            return value.name
        key = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(value, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def broadcast(self, value: Value, shape: Shape) -> Value:
        """The value with all axes at full length."""
        if value.shape == shape:
            return value
        return self.emit("Expand", [value, self.lengths(shape)], shape)

    def lengths(self, shape: Shape) -> Value:
        """A shape as an int64 vector."""
        if not any(map(is_symbolic_dim, shape)):
            return np.asarray(shape, np.int64)
        dims = [self.dimension(dim) if is_symbolic_dim(dim) else np.asarray([dim], np.int64) for dim in shape]
        return self.emit("Concat", dims, (len(shape),), axis=0)

    def dimension(self, dim: Any) -> Tensor:
        """The length of an axis with a symbolic dimension, int64 (1,).

        Raises:
          UnsupportedOperationError: no input has such a dimension.
        """
        if str(dim) not in self.dimensions:
            raise UnsupportedOperationError(f"an axis of length {dim}")
        return self.dimensions[str(dim)]

    def reshape(self, value: Value, shape: Shape) -> Value:
        """The value in another shape.

        Raises:
          UnsupportedOperationError: more than one symbolic dimension has changed its place or size.
        """
        if value.shape == shape:
            return value
        if not isinstance(value, Tensor) and not any(map(is_symbolic_dim, shape)):
            return value.reshape(shape)
        target: list[int] = []
        for axis, dim in enumerate(shape):
            kept = axis < len(value.shape) and value.shape[axis] == dim
            target.append((0 if kept else -1) if is_symbolic_dim(dim) else dim)
        if target.count(-1) > 1:
            raise UnsupportedOperationError(f"reshape from {value.shape} to {shape}")
        return self.emit("Reshape", [value, np.asarray(target, np.int64)], shape)

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """The value with its axes permuted, as np.transpose."""
        if [*permutation] == [*range(len(value.shape))]:
            return value
        if not isinstance(value, Tensor):
            return np.ascontiguousarray(value.transpose(permutation))
        shape = tuple(value.shape[axis] for axis in permutation)
        return self.emit("Transpose", [value], shape, perm=[*map(int, permutation)])

    def model(self, outputs: Mapping[str, tuple[Value, Any]], name: str) -> onnx.ModelProto:
        """The finished program.

        Args:
          outputs: name -> value, and its full shape and dtype.
          name: of the graph.
        """
        for output, (value, array) in outputs.items():
            source = self.name(self.broadcast(value, array.shape))
            self.nodes.append(helper.make_node("Identity", [source], [output], name=f"output_{output}"))
        inputs = [describe(key, array) for key, array in self.inputs.items()]
        described = [describe(key, array) for key, (_, array) in outputs.items()]
        graph = helper.make_graph(self.nodes, name, inputs, described, [*self.constants.values()])
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lbdt_jax")


def describe(name: str, array: Any) -> onnx.ValueInfoProto:
    """Name, dtype and shape of an input or output."""
    shape = [str(dim) if is_symbolic_dim(dim) else dim for dim in array.shape]
    return helper.make_tensor_value_info(name, tensor_type(array.dtype), shape)


def tensor_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
