"""How each JAX primitive that the network has is written as ONNX operations.

A rule raises UnsupportedOperationError for a form of its primitive that it does not translate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.export import is_symbolic_dim
from jax.lax import GatherScatterMode

from lbdt_jax.export.onnx_graph import Equation, Graph, Shape, Tensor, UnsupportedOperationError, Value, tensor_type


def broadcast_shape(*shapes: Shape) -> Shape:
    """The shape of values of the same rank, or scalars, that are broadcast together."""
    rank = max(map(len, shapes))
    columns = zip(*(shape for shape in shapes if len(shape) == rank), strict=True)
    return tuple(next((dim for dim in column if is_symbolic_dim(dim) or dim != 1), 1) for column in columns)


def broadcasting(graph: Graph, equation: Equation, inputs: Sequence[Value]) -> Value:
    """An operation on every element, of values that are broadcast."""
    name, dtype = equation.primitive.name, equation.invars[0].aval.dtype
    if name in ("and", "not", "or", "select_n") and (dtype != np.dtype(bool) or len(inputs) > 3):
        raise UnsupportedOperationError(f"{name} of {dtype}")
    operation = BROADCASTING[name]
    if operation == "Sub" and isinstance(inputs[1], np.ndarray):
        operation, inputs = "Add", [inputs[0], -inputs[1]]  # what onnxruntime fuses into convolutions
    if operation == "Max" and isinstance(inputs[1], np.ndarray) and not np.any(inputs[1]) and dtype == np.float32:
        operation, inputs = "Relu", inputs[:1]
    if operation == "Where":  # in JAX, what is selected where false comes first
        inputs = [inputs[0], inputs[2], inputs[1]]
    return graph.emit(operation, inputs, broadcast_shape(*(x.shape for x in inputs)))


def broadcast_in_dim(graph: Graph, equation: Equation, x: Value, *_: Value) -> Value:
    """Inserts axes of length 1; that they are longer is left to the operations that follow."""
    kept = equation.params["broadcast_dimensions"]
    lengths = dict(zip(kept, x.shape, strict=True))
    shape = tuple(lengths.get(axis, 1) for axis in range(len(equation.params["shape"])))
    if not isinstance(x, Tensor):
        return x.reshape(shape)
    axes = np.asarray([axis for axis in range(len(shape)) if axis not in lengths], np.int64)
    return graph.emit("Unsqueeze", [x, axes], shape) if axes.size else x


def convolution(graph: Graph, equation: Equation, x: Value, kernel: Value) -> Value:
    """`jax.lax.conv_general_dilated` without dilation of the input."""
    params = equation.params
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise UnsupportedOperationError("a convolution with batch_group_count or lhs_dilation")
    numbers, aval = params["dimension_numbers"], equation.outvars[0].aval
    y = graph.emit(
        "Conv",
        [graph.transpose(x, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)],
        tuple(aval.shape[axis] for axis in numbers.out_spec),
        kernel_shape=[kernel.shape[axis] for axis in numbers.rhs_spec[2:]],
        strides=[*map(int, params["window_strides"])],
        pads=begin_and_end(params["padding"]),
        dilations=[*map(int, params["rhs_dilation"])],
        group=int(params["feature_group_count"]),
    )
    return graph.transpose(y, np.argsort(numbers.out_spec).tolist())


def begin_and_end(padding: Sequence[tuple[int, ...]]) -> list[int]:
    """((before, after), ...) as ONNX has it: all that is before, then all that is after."""
    return [int(pair[0]) for pair in padding] + [int(pair[1]) for pair in padding]


def max_pool(graph: Graph, equation: Equation, x: Value) -> Value:
    """`reduce_window_max` over the middle axes of (B, H, W, C)."""
    params = equation.params
    window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
    dilations = {*params["base_dilation"], *params["window_dilation"]}
    if dilations != {1} or len(window) != 4 or window[0] != 1 or window[3] != 1:
        raise UnsupportedOperationError(f"reduce_window_max with windows of {window}")
    batch, height, width, channels = equation.outvars[0].aval.shape
    y = graph.emit(
        "MaxPool",
        [graph.transpose(x, (0, 3, 1, 2))],
        (batch, channels, height, width),
        kernel_shape=[*map(int, window[1:3])],
        strides=[*map(int, strides[1:3])],
        pads=begin_and_end(padding[1:3]),
    )
    return graph.transpose(y, (0, 2, 3, 1))


def dot_general(graph: Graph, equation: Equation, x: Value, y: Value) -> Value:
    """A matrix product: (batch..., M, K) times (batch..., K, N), after transposing and merging axes."""
    (x_contracted, y_contracted), (x_batch, y_batch) = equation.params["dimension_numbers"]
    x_free = [axis for axis in range(len(x.shape)) if axis not in (*x_contracted, *x_batch)]
    y_free = [axis for axis in range(len(y.shape)) if axis not in (*y_contracted, *y_batch)]
    x = graph.transpose(x, [*x_batch, *x_free, *x_contracted])
    y = graph.transpose(y, [*y_batch, *y_contracted, *y_free])
    batch_rank, shape = len(x_batch), equation.outvars[0].aval.shape
    if len(y_free) == len(y_contracted) == 1 and not x_batch and x_free:
        return graph.emit("MatMul", [x, y], shape)
    x_rows, y_columns = x.shape[batch_rank:][: len(x_free)], y.shape[len(y.shape) - len(y_free) :]
    inner = math.prod(x.shape[batch_rank + len(x_free) :])
    x = graph.reshape(x, (*x.shape[:batch_rank], math.prod(x_rows), inner))
    y = graph.reshape(y, (*y.shape[:batch_rank], inner, math.prod(y_columns)))
    batch = shape[:batch_rank]
    product = graph.emit("MatMul", [x, y], (*batch, x.shape[-2], y.shape[-1]))
    return graph.reshape(product, (*batch, *x_rows, *y_columns))


def gather(graph: Graph, equation: Equation, x: Value, indices: Value) -> Value:
    """`jax.lax.gather` of whole slices along one axis, or along several with known indices that form a grid."""
    params = equation.params
    numbers, shape = params["dimension_numbers"], equation.outvars[0].aval.shape
    axes, rank = numbers.start_index_map, len(shape)
    index_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    whole = all(size == 1 if axis in axes else size == x.shape[axis] for axis, size in enumerate(params["slice_sizes"]))
    if params["mode"] == GatherScatterMode.CLIP and isinstance(indices, Tensor):
        raise UnsupportedOperationError("gather of the nearest slice")  # ONNX reports indices that are out of bounds
    if isinstance(indices, np.ndarray) and indices.ndim == 1 and not numbers.collapsed_slice_dims:
        ends = indices + [params["slice_sizes"][axis] for axis in axes]
        return graph.emit("Slice", [x, indices, ends.astype(indices.dtype), np.asarray(axes, indices.dtype)], shape)
    if numbers.collapsed_slice_dims != axes or numbers.operand_batching_dims or not whole:
        raise UnsupportedOperationError("gather of parts of slices")
    if len(axes) == 1:
        indices = graph.reshape(indices, indices.shape[:-1])
        first = axes[0]
        y = graph.emit("Gather", [x, indices], (*x.shape[:first], *indices.shape, *x.shape[first + 1 :]), axis=first)
        # ONNX puts the axes of the indices where the axis was.
        order = [*range(first), *range(first + len(index_axes), rank), *range(first, first + len(index_axes))]
        source_of = dict(zip([*numbers.offset_dims, *index_axes], order, strict=True))
        return graph.transpose(y, [source_of[axis] for axis in range(rank)])
    if isinstance(indices, Tensor) or [*axes] != index_axes:
        raise UnsupportedOperationError("gather along several axes")
    for position, axis in enumerate(axes):
        along = np.moveaxis(indices[..., position], position, 0).reshape(indices.shape[position], -1)
        if np.any(along != along[:, :1]):
            raise UnsupportedOperationError("gather of single elements")
        x = graph.emit("Gather", [x, along[:, 0]], (*x.shape[:axis], len(along), *x.shape[axis + 1 :]), axis=int(axis))
    return x


def reduce(operation: str) -> Callable[..., Value]:
    """A rule for a reduction over some axes."""

    def rule(graph: Graph, equation: Equation, x: Value) -> Value:
        axes = np.asarray(equation.params["axes"], np.int64)
        return graph.emit(operation, [x, axes], equation.outvars[0].aval.shape, keepdims=0)

    return rule


def slice_axes(graph: Graph, equation: Equation, x: Value) -> Value:
    """`jax.lax.slice`; an axis of unknown length stays whole."""
    params, shape = equation.params, equation.outvars[0].aval.shape
    strides = params["strides"] or (1,) * len(shape)
    ranges = [
        (axis, start, limit, stride)
        for axis, (start, limit, stride) in enumerate(
            zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        )
        if (start, limit, stride) != (0, x.shape[axis], 1)
    ]
    if any(map(is_symbolic_dim, sum(ranges, ()))):
        raise UnsupportedOperationError("a slice of an axis of unknown length")
    axes, starts, limits, steps = (np.asarray(numbers, np.int64) for numbers in zip(*ranges, strict=True))
    return graph.emit("Slice", [x, starts, limits, axes, steps], shape)


def pad(graph: Graph, equation: Equation, x: Value, fill: Value) -> Value:
    """`jax.lax.pad` with a known value, at the borders."""
    config = equation.params["padding_config"]
    if any(interior for *_, interior in config) or isinstance(fill, Tensor):
        raise UnsupportedOperationError("pad between elements, or with a computed value")
    pads = np.asarray(begin_and_end(config), np.int64)
    return graph.emit("Pad", [x, pads, fill], equation.outvars[0].aval.shape)


def reverse(graph: Graph, equation: Equation, x: Value) -> Value:
    """Reverses axes of known length."""
    for axis in equation.params["dimensions"]:
        x = graph.emit("Gather", [x, np.arange(x.shape[axis])[::-1].copy()], x.shape, axis=int(axis))
    return x


def split(graph: Graph, equation: Equation, x: Value) -> list[Tensor]:
    """`jax.lax.split`."""
    sizes = np.asarray(equation.params["sizes"], np.int64)
    shapes = [variable.aval.shape for variable in equation.outvars]
    return graph.emit_many("Split", [x, sizes], shapes, axis=int(equation.params["axis"]))


def concatenate(graph: Graph, equation: Equation, *inputs: Value) -> Value:
    """`jax.lax.concatenate`."""
    return graph.emit("Concat", inputs, equation.outvars[0].aval.shape, axis=int(equation.params["dimension"]))


def stack(graph: Graph, equation: Equation, *inputs: Value) -> Value:
    """Concatenates along a new axis."""
    return stack_values(graph, inputs, equation.outvars[0].aval.shape, int(equation.params["axis"]))


def stack_values(graph: Graph, values: Sequence[Value], shape: Shape, axis: int = 0) -> Value:
    """Concatenates values along a new axis; `shape` is that of the result."""
    axes, one = np.asarray([axis], np.int64), (*shape[:axis], 1, *shape[axis + 1 :])
    return graph.emit("Concat", [graph.emit("Unsqueeze", [x, axes], one) for x in values], shape, axis=axis)


def unstack(graph: Graph, equation: Equation, x: Value) -> list[Tensor]:
    """Splits along an axis, which is dropped; a primitive since JAX 0.12."""
    axis, shapes = int(equation.params["axis"]), [variable.aval.shape for variable in equation.outvars]
    one = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    parts = graph.emit_many("Split", [x, np.ones(len(shapes), np.int64)], [one] * len(shapes), axis=axis)
    return [graph.emit("Squeeze", [part, np.asarray([axis], np.int64)], shapes[0]) for part in parts]


def cast(graph: Graph, equation: Equation, x: Value) -> Value:
    """`convert_element_type`."""
    if equation.invars[0].aval.dtype == equation.params["new_dtype"]:
        return x
    dtype = tensor_type(equation.params["new_dtype"])
    return graph.emit("Cast", [x], x.shape, to=dtype)


def squeeze(graph: Graph, equation: Equation, x: Value) -> Value:
    """Removes axes of length 1."""
    axes = np.asarray(equation.params["dimensions"], np.int64)
    return graph.emit("Squeeze", [x, axes], equation.outvars[0].aval.shape)


def dim_as_value(graph: Graph, equation: Equation) -> Value:
    """The length of an axis as an integer."""
    length = graph.emit("Squeeze", [graph.dimension(equation.params["dim"])], ())
    dtype = tensor_type(equation.outvars[0].aval.dtype)
    return graph.emit("Cast", [length], (), to=dtype)


def inverse_sqrt(graph: Graph, equation: Equation, x: Value) -> Value:
    """1 / sqrt(x)."""
    return graph.emit("Reciprocal", [graph.emit("Sqrt", [x], x.shape)], x.shape)


def complementary_erf(graph: Graph, equation: Equation, x: Value) -> Value:
    """1 - erf(x)."""
    return graph.emit("Sub", [np.ones((), np.float32), graph.emit("Erf", [x], x.shape)], x.shape)


def power(graph: Graph, equation: Equation, x: Value) -> Value:
    """`integer_pow`."""
    return graph.emit("Pow", [x, np.asarray(equation.params["y"], np.float32)], x.shape)


#: Operations on every element, whose inputs are broadcast.
BROADCASTING = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "copy": "Identity",
    "copy_p": "Identity",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "select_n": "Where",
    "sqrt": "Sqrt",
    "stop_gradient": "Identity",
    "sub": "Sub",
    "tanh": "Tanh",
}

#: Rules whose inputs may have length 1 along axes that JAX has broadcast.
LAZY = {"broadcast_in_dim", "convert_element_type", "erfc", "integer_pow", "rsqrt", "square"}

#: Primitive -> what translates it: (graph, equation, inputs) -> output, or a list of them.
RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "conv_general_dilated": convolution,
    "convert_element_type": cast,
    "dim_as_value": dim_as_value,
    "dot_general": dot_general,
    "erfc": complementary_erf,
    "gather": gather,
    "integer_pow": power,
    "pad": pad,
    "reduce_max": reduce("ReduceMax"),
    "reduce_sum": reduce("ReduceSum"),
    "reduce_window_max": max_pool,
    "reshape": lambda graph, equation, x: graph.reshape(x, equation.params["new_sizes"]),
    "rev": reverse,
    "rsqrt": inverse_sqrt,
    "slice": slice_axes,
    "split": split,
    "square": lambda graph, equation, x: graph.emit("Mul", [x, x], x.shape),
    "squeeze": squeeze,
    "stack": stack,
    "transpose": lambda graph, equation, x: graph.transpose(x, equation.params["permutation"]),
    "unstack": unstack,
}
