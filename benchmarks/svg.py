"""Bar charts as SVG, written by hand: a few rectangles and words do not make a plotting library worth its import.

Colours are taken from what is readable on a light page and on a dark one; the words follow the reader's preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_WIDTH = 920
_LEFT = 380
"""Where the bars begin: before them stand the names of what was done."""
_RIGHT = 130
"""Room behind the longest bar for its figure."""
_BAR, _GAP, _TOP, _BOTTOM = 15, 14, 58, 46
_COLOURS = ("#2f81c7", "#c98a2b", "#7a8490", "#3f9a68", "#a45fb5")
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #424a53; }
.title { font-size: 15px; font-weight: 600; }
.grid { stroke: #8c959f; stroke-opacity: 0.35; }
@media (prefers-color-scheme: dark) { text { fill: #c3ccd5; } }
"""


class Group(NamedTuple):
    """Bars that are compared with each other.

    Attributes:
        label: what was done.
        bars: contender, value and the figure to write behind it.
    """

    label: str
    bars: Sequence[tuple[str, float, str]]


def bars(title: str, axis: str, groups: Sequence[Group]) -> str:
    """Draw groups of horizontal bars; the longest of each group has the whole length.

    Args:
        title: above the chart.
        axis: what the length means.
        groups: from the top.
    """
    contenders = list(dict.fromkeys(name for group in groups for name, _, _ in group.bars))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(contenders)}
    span = _WIDTH - _LEFT - _RIGHT
    body: list[str] = []
    y = _TOP
    for group in groups:
        longest = max((value for _, value, _ in group.bars), default=0) or 1
        middle = y + len(group.bars) * _BAR / 2
        body.append(_text(_LEFT - 10, middle + 4, group.label, anchor="end"))
        for name, value, figure in group.bars:
            width = max(1.0, value / longest * span)
            body.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{colours[name]}"/>')
            body.append(_text(_LEFT + width + 6, y + 11, figure))
            y += _BAR
        y += _GAP
    grid = [
        f'<line class="grid" x1="{x:.0f}" y1="{_TOP - 6}" x2="{x:.0f}" y2="{y}"/>'
        + _text(x, y + 16, f"{percent} %", anchor="middle")
        for percent in (0, 25, 50, 75, 100)
        for x in [_LEFT + span * percent / 100]
    ]
    legend, x = [], float(_LEFT)
    for name in contenders:
        legend += [f'<rect x="{x:.0f}" y="34" width="11" height="11" fill="{colours[name]}"/>', _text(x + 16, 44, name)]
        x += 34 + 6.6 * len(name)
    height = y + _BOTTOM
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<text class="title" x="10" y="22">{escape(title)}</text>',
            *legend,
            *grid,
            *body,
            _text(_LEFT + span / 2, y + 34, axis, anchor="middle"),
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(words)}</text>'
