"""Draw the relevance path of a model as SVG: a box for each node with its rule, lines as wide as their relevance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lrp_onnx.graph.functions import DOMAIN
from lrp_onnx.inspection import Flow, Inspection
from lrp_onnx.ops import label
from lrp_onnx.render.layered import layered

_BOX, _HEIGHT, _GAP, _ROW, _MARGIN, _TOP = 232, 38, 14, 62, 16, 58  # pixels
_LETTERS = 32  # of a tensor's name that fit into a box
_WIDEST, _THINNEST = 14.0, 0.8  # pixels, for all of the relevance and for none
_FILLS = {
    "linear": "#dbe7fb",
    "activation": "#fdeccf",
    "normalisation": "#e4dcf5",
    "softmax": "#e4dcf5",
    "max": "#d8f0e2",
    "mean": "#d8f0e2",
    "sum": "#fbdfe3",
    "product": "#fbdfe3",
    "quotient": "#fbdfe3",
}
_OTHER, _END, _MISSING = "#eef0f2", "#ffffff", "#ff9c9c"
_POSITIVE, _NEGATIVE, _PLAIN = "#c0392b", "#2563c9", "#8a94a0"
_STYLE = """text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1d2733}
.o{font-weight:600}.s{font-size:10.5px;fill:#5b6672}.p{font-size:10.5px;paint-order:stroke;stroke:#fff;stroke-width:3px}
.b{stroke:#9aa5b1;stroke-width:1}path{fill:none}"""


def path_svg(inspection: Inspection, flow: Flow | None = None) -> str:
    """The SVG's text; with a flow, lines are as wide as the relevance that they carry, red for and blue against.

    Boxes have the op, its rule, the framework's layer (or else the output's name) and the shape; pointing at one shows
    the names of node and output, and why it got the rule. Relevance goes from the bottom to the top.
    """
    plan, graph = inspection.plan, inspection.graph
    steps = {step.node.name: step for step in plan.steps}
    maker = {name: step.node.name for step in plan.steps for name in step.node.outputs}
    ends = [name for name in plan.tensors if name in graph.inputs]
    edges: dict[tuple[str, str], list[str]] = {}
    for step in plan.steps:
        for name in step.active:
            edges.setdefault((maker.get(name, f"\t{name}"), step.node.name), []).append(name)
    layout = layered([f"\t{name}" for name in ends] + list(steps), list(edges))
    width = round(layout.width * (_BOX + _GAP)) + 2 * _MARGIN
    height = _TOP + layout.rows * _ROW + _MARGIN

    def middle(place: tuple[float, int]) -> tuple[float, float]:
        return _MARGIN + place[0] * (_BOX + _GAP), _TOP + place[1] * _ROW + _HEIGHT / 2

    lines, boxes = [], []
    for (start, end), tensors in edges.items():
        share = None if flow is None else sum(flow.edges.get((end, name), 0.0) for name in dict.fromkeys(tensors))
        points = [middle(place) for place in layout.routes[start, end]]
        lines.append(_line(points, share, f"{tensors[0]} to {end}", several=_reads(edges, start) > 1))
    for name in ends:
        share = None if flow is None else flow.tensors.get(name)
        boxes.append(
            _box(middle(layout.places[f"\t{name}"]), "input", "", name, _shape(graph.shapes.get(name)), _END, share)
        )
    for key, step in steps.items():
        output, rule = step.node.outputs[0], inspection.rule(step)
        values = ", ".join(f"{k}={v}" for k, v in step.parameters.items())
        title = f"{key}\n{output}\n{rule or 'no rule'} {values}\n{inspection.why(step)}"
        fill = _MISSING if rule is None else _FILLS.get(step.site.op.family if step.site.op else "", _OTHER)
        share = None if flow is None else flow.tensors.get(output)
        shape = _shape(graph.shapes.get(output))
        boxes.append(
            _box(
                middle(layout.places[key]),
                label(step.node).removeprefix(f"{DOMAIN}."),
                rule or "no rule",
                step.node.layer or output,
                shape,
                fill,
                share,
                title,
            )
        )
    wide = max(width, 640)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{height}" viewBox="0 0 {wide} {height}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="{_MARGIN}" y="24" class="o" style="font-size:15px">{escape(graph.name)}</text>'
        f'<text x="{_MARGIN}" y="42" class="s">{escape(_legend(inspection, flow))}</text>'
        + "".join(lines + boxes)
        + "</svg>\n"
    )


def _legend(inspection: Inspection, flow: Flow | None) -> str:
    text = f"composite {inspection.plan.composite.name}, {len(inspection.plan.steps)} nodes"
    if flow is None:
        return text
    target = "the outputs" if flow.target is None else f"output {flow.target}"
    return f"{text}; relevance of {target} in % of its start, upwards: red for, blue against"


def _reads(edges: dict[tuple[str, str], list[str]], start: str) -> int:
    return sum(source == start for source, _ in edges)


def _line(points: Sequence[tuple[float, float]], share: float | None, title: str, *, several: bool) -> str:
    (x, y), *others = points
    path = [f"M{x:.0f},{y + _HEIGHT / 2:.0f}"]
    at = (x, y + _HEIGHT / 2)
    for number, (x, y) in enumerate(others):
        end = (x, y - _HEIGHT / 2)
        bend = (at[1] + end[1]) / 2
        path.append(f"C{at[0]:.0f},{bend:.0f} {x:.0f},{bend:.0f} {x:.0f},{end[1]:.0f}")
        at = end
        if number < len(others) - 1:
            path.append(f"V{y + _HEIGHT / 2:.0f}")
            at = (x, y + _HEIGHT / 2)
    if share is None:
        return f'<path d="{" ".join(path)}" stroke="{_PLAIN}" stroke-width="1.4"><title>{escape(title)}</title></path>'
    thick = min(_THINNEST + (_WIDEST - _THINNEST) * abs(share), 2 * _WIDEST)
    colour = _PLAIN if abs(share) < 5e-4 else _POSITIVE if share > 0 else _NEGATIVE
    mark = ""
    if several:  # an edge that passes other rows says it there, where it is alone
        x, y = at if len(points) == 2 else (points[1][0], points[1][1])
        mark = f'<text class="p" text-anchor="middle" x="{x:.0f}" y="{y - 4:.0f}">{_percent(share)}</text>'
    return (
        f'<path d="{" ".join(path)}" stroke="{colour}" stroke-width="{thick:.1f}" stroke-opacity=".75">'
        f"<title>{escape(title)}: {_percent(share)}</title></path>{mark}"
    )


def _box(
    at: tuple[float, float],
    op: str,
    rule: str,
    name: str,
    shape: str,
    fill: str,
    share: float | None,
    title: str = "",
) -> str:
    x, y = at[0] - _BOX / 2, at[1] - _HEIGHT / 2
    short = name if len(name) + len(shape) < _LETTERS else f"…{name[len(name) + len(shape) - _LETTERS :]}"
    value = "" if share is None else _percent(share)
    return (
        f'<g><title>{escape(title or name)}</title><rect class="b" x="{x:.0f}" y="{y:.0f}" width="{_BOX}" '
        f'height="{_HEIGHT}" rx="5" fill="{fill}"/>'
        f'<text x="{x + 8:.0f}" y="{y + 16:.0f}"><tspan class="o">{escape(op)}</tspan> {escape(rule)}</text>'
        f'<text x="{x + _BOX - 8:.0f}" y="{y + 16:.0f}" text-anchor="end">{value}</text>'
        f'<text class="s" x="{x + 8:.0f}" y="{y + 31:.0f}">{escape(short)}</text>'
        f'<text class="s" x="{x + _BOX - 8:.0f}" y="{y + 31:.0f}" text-anchor="end">{escape(shape)}</text></g>'
    )


def _shape(shape: Sequence[int | str | None] | None) -> str:
    if shape is None:
        return "?"
    return "×".join(str(s) if isinstance(s, int) else "N" if axis == 0 else "?" for axis, s in enumerate(shape))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if abs(share) < 100 else f"{share:.1e}"
