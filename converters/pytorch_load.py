"""Bring every PyTorch source form to a module in evaluation mode, an exported program or a ScriptModule."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrp_onnx.converters.base import Request, one_line, require, some
from lrp_onnx.errors import ConversionError

if TYPE_CHECKING:
    import torch

SUFFIXES = frozenset({".pt", ".pth", ".pt2", ".ts", ".torch", ".ckpt", ".bin", ".safetensors"})
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # left by DataParallel and torch.compile
# How torch's restricted unpickler says that a file wants a class or function it does not allow.
_FOREIGN_CLASS = ("nsupported global", "nsupported class", "not an allowed global", "GLOBAL")
_NEEDS_FACTORY = (
    "it holds weights without an architecture; give the architecture as module:factory and this file as weights"
)


def read_model(path: Path, trust_pickle: bool) -> Any:
    """
    Read a model file: exported program, TorchScript archive, or, when trusted, a pickled module.

    What a file is is told from what it contains, because `.pt` and `.pth` are used for all of these forms.
    """
    if path.suffix == ".safetensors":
        raise ConversionError(f"{path}: {_NEEDS_FACTORY}")
    members = _archive_members(path)
    if any(member.endswith("/constants.pkl") for member in members) and any("/code/" in member for member in members):
        return _read_script(path)
    if any("models/" in member or member.startswith("serialized_exported_program") for member in members):
        return _read_exported(path, trust_pickle)
    if path.suffix == ".pt2":
        raise ConversionError(f"{path} is not an exported program: expected a file written by torch.export.save")
    return _read_pickle(path, trust_pickle)


def _archive_members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _read_script(path: Path) -> Any:
    import torch

    try:
        return torch.jit.load(str(path), map_location="cpu")
    except Exception as error:
        raise ConversionError(f"{path} cannot be read as TorchScript: {one_line(error)}") from error


def _read_exported(path: Path, trust_pickle: bool) -> Any:
    import torch

    try:
        with _pickle_restricted(not trust_pickle):
            return torch.export.load(str(path))
    except pickle.UnpicklingError as error:
        raise ConversionError(f"{path}: {_refusal('holds pickled objects')}") from error
    except Exception as error:
        raise ConversionError(f"{path} cannot be read as an exported program: {one_line(error)}") from error


@contextmanager
def _pickle_restricted(restricted: bool) -> Iterator[None]:
    """torch.export.load falls back to the unrestricted unpickler; this switch of torch.load forbids it."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    if restricted:
        os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(switch, None)
        else:
            os.environ[switch] = before


def _read_pickle(path: Path, trust_pickle: bool) -> Any:
    import torch

    value = _torch_load(path, trust_pickle, "holds a whole pickled module")
    if not isinstance(value, torch.nn.Module):
        found = _NEEDS_FACTORY if isinstance(value, Mapping) else f"it holds a {type(value).__name__}, not a model"
        raise ConversionError(f"{path}: {found}")
    return value


def _torch_load(path: Path, trust_pickle: bool, content: str) -> Any:
    import torch

    # A pickled module names its classes; a project keeps them beside where it is run.
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in _FOREIGN_CLASS):
            raise ConversionError(f"{path}: {_refusal(content)}") from error
        raise ConversionError(f"{path} is no file that PyTorch can read: damaged or of another kind") from error
    except Exception as error:
        raise ConversionError(f"{path} is not a file that PyTorch can read: {one_line(error)}") from error
    finally:
        sys.path.remove(folder)


def _refusal(content: str) -> str:
    return (
        f"it {content}, and unpickling runs whatever code the file contains; if you trust where it comes from, pass "
        "trust_pickle=True (--trust-pickle), otherwise give module:factory with a .safetensors or state_dict file"
    )


def read_weights(path: Path, trust_pickle: bool) -> dict[str, torch.Tensor]:
    """Read a state dict from `.safetensors` or a `torch.save` file, without the wrappings that trainers add."""
    import torch

    if not path.is_file():
        raise ConversionError(f"weights {path}: there is no such file")
    if path.suffix == ".safetensors":
        reader = require("safetensors.torch", "pytorch", "reading .safetensors")
        try:
            state: Any = reader.load_file(str(path))
        except Exception as error:
            raise ConversionError(f"weights {path} cannot be read as safetensors: {one_line(error)}") from error
    else:
        state = _torch_load(path, trust_pickle, "holds more than weights")
    if isinstance(state, torch.nn.Module):
        state = state.state_dict()
    while isinstance(state, Mapping):
        inner = next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ConversionError(
            f"weights {path}: expected a state dict (names to tensors), possibly under one of "
            f"{', '.join(map(repr, _WRAPPERS))}; found {_describe(state)}"
        )
    state = dict(state)
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _describe(state: Any) -> str:
    if isinstance(state, Mapping):
        return f"a dict with {some([str(key) for key in state], 5)}"
    return f"a {type(state).__name__}"


def load_weights(module: torch.nn.Module, path: Path, trust_pickle: bool) -> None:
    """Load weights into `module`; ConversionError names the first keys or shapes that do not fit."""
    import torch

    state = read_weights(path, trust_pickle)
    own = module.state_dict()
    reshaped = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if isinstance(own.get(key), torch.Tensor) and own[key].shape != value.shape
    ]
    if reshaped:
        raise ConversionError(f"weights {path} do not fit {type(module).__name__}: of another shape: {some(reshaped)}")
    try:
        unmatched = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ConversionError(f"weights {path} do not fit {type(module).__name__}: {one_line(error)}") from error
    # Counters of BatchNorm: files written before PyTorch 0.4.1 lack them, and inference does not use them.
    missing = [key for key in unmatched.missing_keys if not key.endswith("num_batches_tracked")]
    fields = {"missing": missing, "unexpected": unmatched.unexpected_keys}
    problems = [f"{what}: {some(keys)}" for what, keys in fields.items() if keys]
    if problems:
        raise ConversionError(f"weights {path} do not fit {type(module).__name__}: {'; '.join(problems)}")


def private_copy(module: torch.nn.Module, request: Request) -> tuple[torch.nn.Module, list[str]]:
    """A copy on the CPU, in evaluation mode and single precision at least, with the weights asked for; and notes."""
    import torch

    notes: list[str] = []
    if isinstance(module, torch.nn.DataParallel):
        module = module.module
    try:
        module = copy.deepcopy(module).cpu().eval()
    except Exception as error:
        raise ConversionError(
            f"{type(module).__name__} cannot be copied, and the original must stay as it is: {one_line(error)}; "
            "give module:factory and a weights file instead"
        ) from error
    if request.weights is not None:
        load_weights(module, request.weights, request.trust_pickle)
    config: Any = getattr(module, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # Hugging Face's decoders would give their keys and values out, too
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
        module = module.float()
        notes.append("half-precision weights were widened to float32")
    return module, notes
