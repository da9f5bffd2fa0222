"""A bar chart of a comparison as SVG, without any library: how many times as good Datong is, per task and peer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, LEFT, BAR, GAP = 860, 170, 14, 10
COLOURS = ("#4878a8", "#c8743c", "#5a9a5a", "#8a6ab0")


def write(target: Path, rows: Sequence[Sequence[object]], title: str) -> None:
    """Draw rows of (task, engine, median, least, most, ratio, …); the line is at 1."""
    bars = [
        (str(task), str(engine), float(str(ratio))) for task, engine, _, _, _, ratio, *_ in rows if engine != "datong"
    ]
    engines = list(dict.fromkeys(engine for _, engine, _ in bars))
    grouped: dict[str, list[tuple[str, float]]] = {}
    for task, engine, ratio in bars:
        grouped.setdefault(task, []).append((engine, ratio))
    most = max((ratio for _, _, ratio in bars), default=1.0) * 1.1
    scale = (WIDTH - LEFT - 60) / most
    y, out = 60.0, []
    for i, engine in enumerate(engines):
        out.append(f'<rect x="{LEFT + i * 150}" y="34" width="12" height="12" fill="{COLOURS[i % len(COLOURS)]}"/>')
        out.append(f'<text x="{LEFT + 18 + i * 150}" y="44">against {escape(engine)}</text>')
    for task, pairs in grouped.items():
        middle = y + len(pairs) * BAR / 2 + 4
        out.append(f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(task)}</text>')
        for engine, ratio in pairs:
            colour = COLOURS[engines.index(engine) % len(COLOURS)]
            out.append(f'<rect x="{LEFT}" y="{y}" width="{ratio * scale:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            out.append(f'<text x="{LEFT + ratio * scale + 4:.1f}" y="{y + 10}" font-size="10">{ratio:.2f}</text>')
            y += BAR
        y += GAP
    one = LEFT + scale
    line = f'<line x1="{one:.1f}" y1="54" x2="{one:.1f}" y2="{y}" stroke="#000" stroke-dasharray="3 3"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 10:.0f}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="10" y="20" font-size="14">{escape(title)}: times as good as the peer</text>'
    )
    target.write_text("\n".join([head, *out, line, "</svg>"]) + "\n")
