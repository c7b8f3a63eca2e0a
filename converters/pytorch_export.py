"""The ways from a PyTorch module or exported program to ONNX, with nodes named after modules."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from lrp_onnx.converters.base import one_line
from lrp_onnx.converters.pytorch_modules import Arguments, located
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_OPSET = 20  # the first with Gelu as one node
_OLDER_OPSET = 18
_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx keeps the modules around a node
_NOWHERE = "_empty_nn_module_stack"  # what it says of nodes that stand in no module


def has_current_exporter() -> bool:
    """Whether this PyTorch exports programs to ONNX (2.6 and newer)."""
    import torch

    return "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters


def export_current(
    module: torch.nn.Module, examples: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """Trace with a free batch dimension by torch.export, then translate."""
    import torch

    batch = torch.export.Dim("batch")
    free: Any = tuple({0: batch} for _ in examples)
    with random_state_kept(), torch.no_grad(), located(module):
        program = torch.export.export(
            module,
            examples,
            dynamic_shapes=(free,) if _takes_any(module) else free,
            strict=False,
        )
    return to_onnx(program, examples, inputs, outputs)


def _takes_any(module: torch.nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


def to_onnx(
    program: torch.export.ExportedProgram, examples: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """Translate an exported program."""
    import torch
    from onnxscript import optimizer

    options: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "verbose": False}
    # The exporter's own optimisation fuses BatchNormalization, in float32: names are lost, and digits.
    plain = "optimize" in inspect.signature(torch.onnx.export).parameters
    if plain:
        options["optimize"] = False
    try:
        with random_state_kept():
            exported = torch.onnx.export(program, examples, dynamo=True, opset_version=_OPSET, **options)
    except Exception as error:
        raise ConversionError(_what_failed(program, error)) from error
    assert exported is not None
    if plain:
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
    _name_after_modules(exported.model)
    return exported.model_proto


def _what_failed(program: torch.export.ExportedProgram, error: Exception) -> str:
    """The reason that torch.onnx hides under its advice, and the module whose operator it is about."""
    text, cause = str(error), error.__cause__
    while cause is not None:
        text, error, cause = f"{text}\n{cause}", cause if isinstance(cause, Exception) else error, cause.__cause__
    line = next((line for line in text.splitlines() if "translating node" in line), "")
    stacks = {node.name: node.meta.get("nn_module_stack") for node in program.graph.nodes}
    # The exporter took the program apart before: an operator that is new stands where what it reads stands.
    stack = next((stacks[name] for name in re.findall(r"%(\w+)", line) if stacks.get(name)), None)
    if stack is None and (kind := re.search(r"target=torch\.ops\.\w+\.(\w+)", line)):  # all of it may be named anew
        same = [node.name for node in program.graph.nodes if kind[1] in str(node.target)]
        stack = next((stacks[name] for name in same if stacks[name]), None)
    if stack is None:
        return one_line(error)
    path, module = list(stack.values())[-1]
    path = path.removeprefix(Arguments.PREFIX).removeprefix(".")
    return f"in {path or 'the model'} ({str(module).rpartition('.')[2]}): {one_line(error)}"


def export_older(
    module: torch.nn.Module,
    examples: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    batch: int | None,
) -> onnx.ModelProto:
    """Trace by torch.jit, as PyTorch did before version 2.6."""
    import torch

    file = io.BytesIO()
    options: dict[str, Any] = {
        "opset_version": _OLDER_OPSET,
        "input_names": inputs,
        "output_names": outputs,
        "dynamic_axes": {} if batch else {name: {0: "batch"} for name in (*inputs, *outputs)},
    }
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    export: Any = torch.onnx.export  # its annotations are the newer exporter's, which takes no file object
    with random_state_kept(), torch.no_grad(), located(module):
        export(module, examples, file, **options)
    return onnx.load_from_string(file.getvalue())


def _name_after_modules(model: ir.Model) -> None:
    """`node_conv2d_5` becomes `layer1.0.conv1/Conv`: the name that errors and `inspect` show is the user's own."""
    used: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        try:
            scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        except (SyntaxError, ValueError):  # another version's form
            scopes = []
        if len(scopes) < 2:
            continue
        path = "" if scopes[-2].startswith(_NOWHERE) else scopes[-2].removeprefix(Arguments.PREFIX).removeprefix(".")
        name = f"{path}/{node.op_type}" if path else node.op_type
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield


def output_names(module: torch.nn.Module, examples: Sequence[torch.Tensor], count: int) -> list[str]:
    """The keys of a dict of outputs, else "output" or numbered ones."""
    from collections.abc import Mapping

    import torch

    with torch.no_grad():
        outputs = module(*examples)
    if isinstance(outputs, Mapping) and len(outputs) == count:
        return [str(name) for name in outputs]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
