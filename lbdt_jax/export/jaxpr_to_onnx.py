"""Translates a traced JAX function (a jaxpr) to an ONNX program: the operations that the network has, and few others.

The weights become constants of the graph. Whatever depends on constants alone is computed here, once. Axes of unknown
length stay so: they are the symbolic dimensions of `jax.export`.

The library jax2onnx translates much more, but version 0.17.1 can't be installed beside this package (it requires
orbax-checkpoint below 0.11.37), and lost the padding of this network's max pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.export import is_symbolic_dim
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from lbdt_jax.export.onnx_graph import OPSET, Equation, Graph, Tensor, UnsupportedOperationError, Value
from lbdt_jax.export.onnx_rules import BROADCASTING, LAZY, RULES, broadcasting, stack_values

__all__ = ["OPSET", "UnsupportedOperationError", "translate"]

#: Calls of another jaxpr; releases of JAX differ in their names.
INLINED = {"checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat", "remat2"}


def translate(
    jaxpr: ClosedJaxpr,
    weights: Sequence[np.ndarray],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    output_names: Sequence[str],
    name: str,
) -> onnx.ModelProto:
    """Translates a function.

    Args:
      jaxpr: the function, traced.
      weights: its first arguments, which become constants.
      inputs: the arguments after them, by name and in order, which become the inputs of the graph.
      output_names: of the results, in order.
      name: of the graph.

    Raises:
      UnsupportedOperationError: the function has an operation that is not translated.
    """
    graph = Graph(inputs)
    arguments: list[Value] = [*weights, *(Tensor(key, array.shape) for key, array in inputs.items())]
    results = zip(run(graph, jaxpr, arguments), jaxpr.out_avals, strict=True)
    return graph.model(dict(zip(output_names, results, strict=True)), name)


def run(graph: Graph, jaxpr: ClosedJaxpr | Jaxpr, arguments: Sequence[Value]) -> list[Value]:
    """Translates all equations; returns the values of the outputs. Raises UnsupportedOperationError."""
    constants = [np.asarray(x) for x in getattr(jaxpr, "consts", ())]
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable: Any) -> Value:
        if isinstance(variable, Literal):
            aval: Any = variable.aval
            return np.asarray(variable.val, aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        outputs = translate_equation(graph, equation, [read(variable) for variable in equation.invars])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def translate_equation(graph: Graph, equation: Equation, inputs: list[Value]) -> list[Value]:
    """The values of one equation's outputs. Raises UnsupportedOperationError if there is no rule for it."""
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":  # of jax.lax.platform_dependent; the default is the plain implementation
        if None not in params["platforms"]:
            raise UnsupportedOperationError("a choice between platforms without a default")
        return [np.asarray(params["platforms"].index(None), np.int32)]
    if name == "cond" and not isinstance(inputs[0], Tensor):
        return run(graph, params["branches"][int(inputs[0])], inputs[1:])
    for key in ("jaxpr", "call_jaxpr"):
        if name in INLINED and key in params:
            return run(graph, params[key], inputs)
    if name == "scan":
        return scan(graph, equation, inputs)
    outputs = [variable.aval.shape for variable in equation.outvars]
    known = [
        x
        for x, variable in zip(inputs, equation.invars, strict=True)
        if isinstance(x, np.ndarray) and x.shape == variable.aval.shape
    ]
    if len(known) == len(inputs) and not any(map(is_symbolic_dim, sum(outputs, ()))) and name != "dim_as_value":
        results = equation.primitive.bind(*known, **params)
        return [np.asarray(x) for x in (results if equation.primitive.multiple_results else [results])]
    if name in BROADCASTING:
        return [broadcasting(graph, equation, inputs)]
    if name not in RULES:
        raise UnsupportedOperationError(name)
    if name not in LAZY:
        inputs = [graph.broadcast(x, variable.aval.shape) for x, variable in zip(inputs, equation.invars, strict=True)]
    output = RULES[name](graph, equation, *inputs)
    return output if isinstance(output, list) else [output]


def scan(graph: Graph, equation: Equation, inputs: list[Value]) -> list[Value]:
    """`jax.lax.scan`, whose number of steps is known, step after step."""
    params = equation.params
    body, length = params["jaxpr"], params["length"]
    if "ft_in" in params:  # JAX 0.12
        constant_count, carry_count, _ = map(len, params["ft_in"].unpack())
    else:
        constant_count, carry_count = params["num_consts"], params["num_carry"]
    constants, rest = inputs[:constant_count], inputs[constant_count:]
    carry = rest[:carry_count]
    variables = equation.invars[constant_count + carry_count :]
    sequences = [graph.broadcast(x, y.aval.shape) for x, y in zip(rest[carry_count:], variables, strict=True)]
    steps: list[list[Value]] = []
    for step in reversed(range(length)) if params["reverse"] else range(length):
        elements = [
            graph.emit("Gather", [x, np.asarray(step, np.int64)], x.shape[1:], axis=0)
            if isinstance(x, Tensor)
            else x[step]
            for x in sequences
        ]
        outputs = run(graph, body, [*constants, *carry, *elements])
        carry = outputs[:carry_count]
        steps.append(outputs[carry_count:])
    if params["reverse"]:
        steps.reverse()
    stacked = []
    for variable, values in zip(equation.outvars[carry_count:], zip(*steps, strict=True), strict=True):
        shape = variable.aval.shape
        stacked.append(stack_values(graph, [graph.broadcast(x, shape[1:]) for x in values], shape))
    return [*carry, *stacked]
