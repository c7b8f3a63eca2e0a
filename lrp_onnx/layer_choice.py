"""Which inner tensors a store is to hold, from what a person says of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from lrp_onnx.engine import Plan
from lrp_onnx.errors import TargetError

# Their output is their input in another shape, and so is its relevance.
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"}


def select_layers(plan: Plan, layers: str | Sequence[str]) -> list[str]:
    """Names of the inner tensors that `layers` means, in execution order; see `compute_heatmaps`.

    Raises
    ------
    TargetError
        When a name or pattern fits no tensor on the relevance path.
    """
    graph = plan.graph
    inner = [name for name in plan.tensors if name not in graph.inputs]
    if layers == "input":
        return []
    if layers == "all":
        return [name for name in inner if graph.producer[name].op_type not in _RESHAPES]
    if isinstance(layers, str):
        layers = [layers] if layers in inner else layers.split(",")
    chosen: set[str] = set()
    names = [name for name in map(str.strip, layers) if name]
    if not names:
        raise TargetError("no layer is named; expected 'input', 'all', or names and patterns of tensors")
    for wanted in names:
        name = graph.aliases.get(wanted, wanted)
        found = {name} & {*inner, *graph.inputs} or {n for n in inner if fnmatchcase(n, wanted)}
        if not found:
            raise TargetError(
                f"{graph.name}: no tensor on the relevance path fits '{wanted}'; `lrp-onnx inspect` lists them, "
                f"such as '{inner[0]}' and '{inner[-1]}'"
            )
        chosen |= found
    return [name for name in inner if name in chosen]
