"""Line charts as inline SVG: they take the colours of the page, print sharp, and can be read aloud."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from lrp_onnx.render.charts import label, range_of, scale, ticks

WIDTH, HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 40
_DOTS = 60  # more points than this are drawn as a line alone

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Sequence[tuple[str, Points]],
    x_name: str,
    marked: float | None = None,
) -> Markup:
    """Lines over whole numbers; `marked` is the chosen x, drawn as a dashed line with the values there.

    Parameters
    ----------
    title : str
        What is shown; escaped here, like the names.
    lines : sequence of (str, points)
        Name and points (x, y) of each, at least one point in all.
    """
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    x_range, y_range = (min(xs) - 0.5, max(xs) + 0.5), range_of(ys)
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    x_of, y_of = scale(x_range, (_LEFT, right)), scale(y_range, (bottom, _TOP))
    at_mark = [(name, y) for name, points in lines for x, y in points if x == marked]
    said = [f"{name}: {label(y)}" if len(lines) > 1 else label(y) for name, y in at_mark]
    spoken = f"{title}, for {x_name} {min(xs):g} to {max(xs):g}" + (
        f"; at {marked:g} {', '.join(said)}" if said else ""
    )
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken)}">',
        f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>',
    ]
    for value in ticks(y_range, 4):
        y = y_of(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{y + 4:.1f}">{label(value)}</text>')
    for value in ticks(x_range, 10, whole=True):
        parts.append(f'<text class="middle" x="{x_of(value):.1f}" y="{bottom + 17}">{label(value)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text class="middle" x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}">{escape(x_name)}</text>')
    if at_mark and marked is not None:
        x = x_of(marked)
        parts.append(f'<path class="mark" d="M{x:.1f} {_TOP}V{bottom}"/>')
        words = f"{marked:g}" if len(lines) > 1 else f"{marked:g}: {said[0]}"
        side, shift = ("end", -6) if marked > sum(x_range) / 2 else ("start", 6)
        parts.append(f'<text class="{side} marked" x="{x + shift:.1f}" y="{_TOP + 11}">{words}</text>')
    for place, (_, points) in enumerate(lines, start=1):
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        parts.append(f'<path class="line line{place}" d="M{path}"/>')
        if len(points) <= _DOTS:
            dots = (f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.5"/>' for x, y in points)
            parts.append(f'<g class="line{place}">{"".join(dots)}</g>')
    if len(lines) > 1:
        names = "  ".join(
            f'<tspan class="name{place}">{escape(name)}</tspan>' for place, (name, _) in enumerate(lines, start=1)
        )
        parts.append(f'<text class="end" xml:space="preserve" x="{right}" y="16">{names}</text>')
    return Markup("".join(parts) + "</svg>")
