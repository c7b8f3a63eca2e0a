"""PyTorch models to ONNX: nn.Module, exported program, TorchScript."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lrp_onnx.converters import pytorch_load
from lrp_onnx.converters.base import InputSpec, Loaded, Request, Route, defined_in
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    import torch


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

    from lrp_onnx.converters import pytorch_export

    model = request.source if model is None else model
    if isinstance(model, torch.export.ExportedProgram):
        return _load_exported(request, model)
    if not isinstance(model, torch.nn.Module):
        raise ConversionError(f"a {type(model).__name__} is no model; expected a torch.nn.Module or exported program")
    module, notes = pytorch_load.private_copy(model, request)
    inputs, module = _module_inputs(request, module)
    run = _runner(module)
    inputs, batch = _that_run(request, module, inputs, run)
    examples = _examples(inputs, batch=batch or 2)
    names = [spec.name for spec in inputs], pytorch_export.output_names(module, examples, len(run(examples)))
    older = Route("TorchScript exporter", lambda: pytorch_export.export_older(module, examples, *names, batch), batch)
    routes = [older]
    if not isinstance(module, torch.jit.ScriptModule) and pytorch_export.has_current_exporter():
        current = Route("torch.export exporter", lambda: pytorch_export.export_current(module, examples, *names))
        routes.insert(0, current)
    exactly = partial(_run_exactly, module)
    return Loaded("pytorch", torch.__version__, inputs, tuple(routes), run, batch, tuple(notes), run_exactly=exactly)


def _that_run(
    request: Request, module: torch.nn.Module, inputs: tuple[InputSpec, ...], run: Callable[[Sequence[Any]], Any]
) -> tuple[tuple[InputSpec, ...], int | None]:
    """The inputs that the module runs on, of whole numbers if it must be, and the batch size if it takes one only."""
    import torch

    from lrp_onnx.converters.pytorch_modules import highest_id

    examples = _examples(inputs, batch=2)
    try:
        run(examples)
        return inputs, None
    except Exception as error:
        # A trace may have the batch size of its example baked in.
        if isinstance(module, torch.jit.ScriptModule) and _runs(run, _examples(inputs, batch=1)):
            return inputs, 1
        if request.examples is None:
            highest = highest_id(module, [example.shape[1:] for example in examples])
            if highest is not None:
                return tuple(replace(spec, dtype=np.dtype(np.int64), highest=highest) for spec in inputs), None
        shapes = ", ".join(
            f"{tuple(example.shape)} {spec.dtype}" for example, spec in zip(examples, inputs, strict=True)
        )
        raise ConversionError(
            f"{_name(module)} does not run on input of shape {shapes} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}); "
            "input_shape is the shape of one sample, without the batch dimension; inputs that are not plain float "
            "arrays need an example"
        ) from error


def _load_exported(request: Request, program: torch.export.ExportedProgram) -> Loaded:
    import torch

    from lrp_onnx.converters import pytorch_export

    if request.weights is not None:
        raise ConversionError("an exported program has its weights inside; weights cannot be given as well")
    if not pytorch_export.has_current_exporter():
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
    io_names = names, pytorch_export.output_names(module, examples, len(run(examples)))
    routes = [Route("exported program as it is", lambda: pytorch_export.to_onnx(program, (), *io_names), batch)]
    if batch is not None:
        # Traced for one batch size only; a second trace often frees it.
        freed = _examples(inputs, batch=2)
        again = Route("exported program, batch freed", lambda: pytorch_export.export_current(module, freed, *io_names))
        routes.insert(0, again)
    return Loaded("pytorch", torch.__version__, inputs, tuple(routes), run, batch)


def _unguarded(program: torch.export.ExportedProgram) -> torch.nn.Module:
    if "check_guards" in inspect.signature(program.module).parameters:
        return program.module(check_guards=False)
    return program.module()


def _module_inputs(request: Request, module: torch.nn.Module) -> tuple[tuple[InputSpec, ...], torch.nn.Module]:
    """Inputs with their names, and the module that takes them in this order."""
    import torch

    from lrp_onnx.converters.pytorch_modules import Arguments

    shapes = request.sample_shapes(f"{type(module).__name__} (PyTorch)")
    floating = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    dtypes = request.dtypes(_numpy_dtype(next(floating, torch.float32)), len(shapes))
    names = list(request.names or ())
    if not names and len(shapes) == 1:
        # Hugging Face's models say what their first argument is called.
        names = [str(getattr(module, "main_input_name", "input"))]
    elif not names:
        try:
            names = [name for name in inspect.signature(module.forward).parameters if name != "self"][: len(shapes)]
        except (TypeError, ValueError):
            names = []
        if len(set(names)) != len(shapes):
            names = [f"input_{index}" for index in range(len(shapes))]
    specs = tuple(InputSpec(*spec) for spec in zip(names, shapes, dtypes, strict=True))
    return specs, Arguments(module, request.names).eval() if request.names else module


def _name(module: torch.nn.Module) -> str:
    from lrp_onnx.converters.pytorch_modules import Arguments

    return type(module.module if isinstance(module, Arguments) else module).__name__


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


def _run_exactly(module: torch.nn.Module, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One run of a copy in float64."""
    exact = copy.deepcopy(module).double()
    return _runner(exact)([array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays])


def _runs(run: Callable[[Sequence[Any]], list[np.ndarray]], arrays: Sequence[Any]) -> bool:
    try:
        run(arrays)
    except Exception:
        return False
    return True
