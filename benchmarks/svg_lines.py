"""Draw curves as an SVG file, with nothing but the standard library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#000000", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#7f7f7f", "#994f00", "#5d3a9b")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 360, 300, 52, 32, 44, 120


def draw_panels(panels: Mapping[str, Mapping[str, Sequence[float]]], x_label: str, y_label: str) -> str:
    """Return an SVG picture with one panel beside the other, each with curves over 1, 2, ... on a logarithmic y axis.

    Args:
        panels: by title, values by the name of the curve; positive.
        x_label, y_label: what the axes show.
    """
    width = (_WIDTH + _LEFT + _LEGEND) * len(panels)
    height = _HEIGHT + _TOP + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, (title, curves) in enumerate(panels.items()):
        lines += [f'<g transform="translate({i * (_WIDTH + _LEFT + _LEGEND) + _LEFT},{_TOP})">']
        lines += [*_panel(title, curves, x_label, y_label), "</g>"]
    return "\n".join([*lines, "</svg>", ""])


def _panel(title: str, curves: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> list[str]:
    low = math.log(min(min(values) for values in curves.values()) * 0.95)
    high = math.log(max(max(values) for values in curves.values()) * 1.05)
    longest = max(map(len, curves.values()))

    def x(step: float) -> float:
        return _WIDTH * step / longest

    def y(value: float) -> float:
        return _HEIGHT * (high - math.log(value)) / (high - low)

    lines = [
        f'<text x="{_WIDTH / 2}" y="-12" text-anchor="middle" font-size="13">{escape(title)}</text>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#444"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(-40,{_HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
    ]
    for part in range(5):
        step, value = longest * part / 4, math.exp(low + (high - low) * part / 4)
        lines += [
            f'<text x="{x(step):.1f}" y="{_HEIGHT + 16}" text-anchor="middle">{step:.0f}</text>',
            f'<text x="-5" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2g}</text>',
            f'<path d="M0 {y(value):.1f}H{_WIDTH}" stroke="#ddd"/>',
        ]
    for i, (name, values) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(f"{x(step + 1):.1f},{y(value):.1f}" for step, value in enumerate(values))
        lines += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>',
            f'<path d="M{_WIDTH + 8} {10 + 16 * i}h14" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{_WIDTH + 26}" y="{14 + 16 * i}">{escape(name)}</text>',
        ]
    return lines
