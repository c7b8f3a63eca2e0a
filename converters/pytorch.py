"""PyTorch models to ONNX: nn.Module, exported program, TorchScript."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from lrp_onnx.converters import pytorch_load
from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, defined_in
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    import torch

_OPSET = 20  # the first with Gelu as one node
_OLDER_OPSET = 18


def matches_object(request: Request) -> bool:
    """An object of torch: module, exported program or ScriptModule."""
    return defined_in(request.source, "torch") and not isinstance(request.source, type)


def matches_file(request: Request) -> bool:
    """A file whose suffix is one that PyTorch models and weights go by."""
    return request.path is not None and request.path.suffix.lower() in pytorch_load.SUFFIXES


def load_file(request: Request) -> Loaded:
    """Read the file and load the object in it."""
    assert request.path is not None
    return load_object(request, pytorch_load.read_model(request.path, request.trust_pickle))


def load_object(request: Request, model: Any = None) -> Loaded:
    """Make a torch object ready to run and to export, without touching it."""
    import torch

    model = request.source if model is None else model
    if isinstance(model, torch.export.ExportedProgram):
        return _load_exported(request, model)
    if not isinstance(model, torch.nn.Module):
        raise ConversionError(f"a {type(model).__name__} is no model; expected a torch.nn.Module or exported program")
    module, notes = pytorch_load.private_copy(model, request)
    inputs = _module_inputs(request, module)
    run = _runner(module)
    examples = _examples(inputs, batch=2)
    try:
        outputs = run(examples)
        batch = None
    except Exception as error:
        if not isinstance(module, torch.jit.ScriptModule) or not _runs(run, _examples(inputs, batch=1)):
            shapes = ", ".join(str(example.shape) for example in examples)
            raise ConversionError(
                f"{type(model).__name__} does not run on input of shape {shapes} "
                f"({type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}); "
                "input_shape is the shape of one sample, without the batch dimension"
            ) from error
        # A trace may have the batch size of its example baked in.
        batch, examples = 1, _examples(inputs, batch=1)
        outputs = run(examples)
    names = [spec.name for spec in inputs], _output_names(module, examples, len(outputs))
    routes = [Route("TorchScript exporter", lambda: _export_older(module, examples, *names, batch), batch)]
    if not isinstance(module, torch.jit.ScriptModule) and _has_current_exporter():
        routes.insert(0, Route("torch.export exporter", lambda: _export_current(module, examples, *names)))
    return Loaded("pytorch", torch.__version__, inputs, tuple(routes), run, batch, tuple(notes))


def _load_exported(request: Request, program: torch.export.ExportedProgram) -> Loaded:
    import torch

    if request.weights is not None:
        raise ConversionError("an exported program has its weights inside; weights cannot be given as well")
    if not _has_current_exporter():
        raise ConversionError(f"torch {torch.__version__} cannot export programs to ONNX; torch 2.6 or newer can")
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    values = [placeholders[name] for name in program.graph_signature.user_inputs if name in placeholders]
    if not values or not all(isinstance(value, torch.Tensor) and value.ndim > 0 for value in values):
        raise ConversionError("the exported program takes inputs that are not tensors with a batch dimension")
    sizes = [[size if isinstance(size, int) else None for size in value.shape] for value in values]
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    names = ["input"] if len(names) == 1 else names
    inputs = tuple(
        InputSpec(name, tuple(size[1:]), _numpy_dtype(value.dtype))
        for name, size, value in zip(names, sizes, values, strict=True)
    )
    batch = sizes[0][0]
    module = _unguarded(program)
    run = _runner(module)
    examples = _examples(inputs, batch or 2)
    io_names = names, _output_names(module, examples, len(run(examples)))
    routes = [Route("exported program as it is", lambda: _to_onnx(program, (), *io_names), batch)]
    if batch is not None:
        # Traced for one batch size only; a second trace often frees it.
        freed = _examples(inputs, batch=2)
        routes.insert(0, Route("exported program, batch freed", lambda: _export_current(module, freed, *io_names)))
    return Loaded("pytorch", torch.__version__, inputs, tuple(routes), run, batch)


def _unguarded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    if "check_guards" in inspect.signature(program.module).parameters:
        return program.module(check_guards=False)
    return program.module()


def _module_inputs(request: Request, module: torch.nn.Module) -> tuple[InputSpec, ...]:
    import torch

    shapes = request.sample_shapes(f"{type(module).__name__} (PyTorch)")
    if len(shapes) == 1:
        names = ["input"]
    else:
        try:
            names = [name for name in inspect.signature(module.forward).parameters if name != "self"][: len(shapes)]
        except (TypeError, ValueError):
            names = []
        if len(set(names)) != len(shapes):
            names = [f"input_{index}" for index in range(len(shapes))]
    floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    dtypes = request.dtypes(_numpy_dtype(next(floating, torch.float32)), len(shapes))
    return tuple(InputSpec(*spec) for spec in zip(names, shapes, dtypes, strict=True))


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    import torch

    return torch.empty(0, dtype=dtype).numpy().dtype


def _examples(inputs: Sequence[InputSpec], batch: int) -> tuple[torch.Tensor, ...]:
    import torch

    free = 64  # any size will do to trace with where the model leaves it free
    return tuple(
        torch.from_numpy(np.zeros((batch, *(size or free for size in spec.shape)), spec.dtype)) for spec in inputs
    )


def _runner(module: torch.nn.Module) -> Callable[[Sequence[Any]], list[np.ndarray]]:
    import torch

    def run(arrays: Sequence[Any]) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = module(*(torch.as_tensor(array) for array in arrays))
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return [leaf.detach().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]

    return run


def _runs(run: Callable[[Sequence[Any]], list[np.ndarray]], arrays: Sequence[Any]) -> bool:
    try:
        run(arrays)
    except Exception:
        return False
    return True


def _output_names(module: torch.nn.Module, examples: Sequence[torch.Tensor], count: int) -> list[str]:
    import torch

    with torch.no_grad():
        outputs = module(*examples)
    if isinstance(outputs, Mapping) and len(outputs) == count:
        return [str(name) for name in outputs]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _has_current_exporter() -> bool:
    import torch

    return "dynamic_shapes" in inspect.signature(torch.onnx.export).parameters


def _export_current(
    module: torch.nn.Module, examples: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    import torch

    batch = torch.export.Dim("batch")
    with _random_state_kept(), torch.no_grad():
        shapes = tuple({0: batch} for _ in examples)
        program = torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
    return _to_onnx(program, examples, inputs, outputs)


def _to_onnx(
    program: torch.export.ExportedProgram, examples: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    import torch
    from onnxscript import optimizer

    options: dict[str, Any] = {"input_names": inputs, "output_names": outputs, "verbose": False}
    # The exporter's own optimisation fuses BatchNormalization, in float32: names are lost, and digits.
    plain = "optimize" in inspect.signature(torch.onnx.export).parameters
    if plain:
        options["optimize"] = False
    with _random_state_kept():
        exported = torch.onnx.export(program, examples, dynamo=True, opset_version=_OPSET, **options)
    assert exported is not None
    if plain:
        optimizer.fold_constants(exported.model)
        optimizer.remove_unused_nodes(exported.model)
    return exported.model_proto


def _export_older(
    module: torch.nn.Module,
    examples: tuple[torch.Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    batch: int | None,
) -> onnx.ModelProto:
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
    with _random_state_kept(), torch.no_grad():
        export(module, examples, file, **options)
    return onnx.load_from_string(file.getvalue())


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        yield
