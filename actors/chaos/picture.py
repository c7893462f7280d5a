"""The timeline of a run as one SVG picture: throughput, lag, and every fault as a mark.

Three panels share one axis of time. All sizes are in the units of the viewBox. Each mark is a
`<g class="mark KIND">` with a `<title>` that tells it, so that a pointer shows what it was and a
test can count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from .slots import CRASH, FENCED_AFTER, KILL, PAUSE, TAKEOVER, Fault

WIDTH, LEFT, RIGHT = 1000.0, 148.0, 24.0
PANEL, GAP, LANE, TOP = 150.0, 44.0, 26.0, 26.0
LANE_CHARS = 20  # of a name beside its lane
POINTS_MAX = 500  # of a curve; more seconds are put together
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#b58900", "#117799", "#884422", "#556677")
KIND_WORDS = {
    KILL: "killed",
    CRASH: "crashed at a crash point",
    PAUSE: "frozen for a moment",
    TAKEOVER: "frozen and replaced",
    FENCED_AFTER: "the frozen one has ended",
}
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400)


@dataclass(frozen=True, slots=True)
class Curve:
    """A named curve: one value for each second."""

    name: str
    values: Sequence[float]
    colour: str


def rates(ends: Sequence[int]) -> list[float]:
    return [float(now - before) for before, now in zip([0, *ends], ends, strict=False)]


class _Scale:
    """From seconds to x."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 1.0)

    def x(self, at_s: float) -> float:
        inner = WIDTH - LEFT - RIGHT
        return LEFT + inner * min(max(at_s, 0.0), self.seconds) / self.seconds

    def ticks(self) -> list[int]:
        step = next((s for s in _STEPS if self.seconds / s <= 11), 28_800)
        return list(range(0, int(self.seconds) + 1, step))


def draw(
    *,
    seconds: float,
    healed_s: float,
    throughput: Sequence[Curve],
    lag: Sequence[Curve],
    lanes: Sequence[str],
    faults: Sequence[Fault],
) -> str:
    """`lanes` names the slots, top to bottom; faults end at `healed_s`."""
    scale = _Scale(seconds)
    lag_top = TOP + PANEL + GAP
    lanes_top = lag_top + PANEL + GAP
    bottom = lanes_top + LANE * len(lanes)
    height = bottom + 62
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
            'aria-label="Throughput, lag and faults over time">'
        ),
        *_healing(scale, healed_s, bottom),
        *_times(scale, ((TOP, TOP + PANEL), (lag_top, lag_top + PANEL), (lanes_top, bottom + 5))),
        *_panel(scale, TOP, "messages per second", throughput),
        *_panel(scale, lag_top, "messages behind", lag),
        *_lanes(scale, lanes_top, lanes),
        *(_mark(scale, lanes_top, lanes, fault) for fault in faults),
        *_key(bottom + 44),
        "</svg>",
    ]
    return "\n".join(parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "label") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _healing(scale: _Scale, healed_s: float, bottom: float) -> Iterable[str]:
    x, end = scale.x(healed_s), scale.x(scale.seconds)
    yield (
        f'<rect class="healed" x="{x:.1f}" y="{TOP:g}" width="{end - x:.1f}" '
        f'height="{bottom - TOP:g}"><title>no more faults: healing and draining</title></rect>'
    )


def _panel(scale: _Scale, top: float, title: str, curves: Sequence[Curve]) -> Iterable[str]:
    """Curves over a grid, with their names above it."""
    base = top + PANEL
    highest, step = _axis(max((max(c.values, default=0) for c in curves), default=0))
    yield _text(LEFT, top - 9, title, kind="title")
    x = LEFT + 165
    for curve in curves:
        yield f'<line x1="{x:.1f}" y1="{top - 13:g}" x2="{x + 16:.1f}" y2="{top - 13:g}" stroke="{curve.colour}" stroke-width="3"/>'
        yield _text(x + 21, top - 9, curve.name)
        x += 40 + 6.6 * len(curve.name)
    for number in range(int(highest / step) + 1):
        value = number * step
        y = base - PANEL * value / highest
        yield f'<line class="grid" x1="{LEFT:g}" y1="{y:.1f}" x2="{WIDTH - RIGHT:g}" y2="{y:.1f}"/>'
        yield _text(LEFT - 8, y + 4, _short(value), anchor="end")
    for curve in curves:
        yield _line(scale, base, highest, curve)


def _line(scale: _Scale, base: float, highest: float, curve: Curve) -> str:
    width = -(-len(curve.values) // POINTS_MAX) or 1
    points = []
    for first in range(0, len(curve.values), width):
        some = curve.values[first : first + width]
        x = scale.x(first + len(some) / 2)
        points.append(f"{x:.1f},{base - PANEL * sum(some) / len(some) / highest:.1f}")
    return (
        f'<polyline class="curve" points="{" ".join(points)}" stroke="{curve.colour}">'
        f"<title>{escape(curve.name)}</title></polyline>"
    )


def _axis(top: float) -> tuple[float, float]:
    """Return a round end of an axis at or above `top`, and the step between its lines."""
    step = 1.0
    while top / step > 5:
        step *= 2.5 if str(step).startswith("2") else 2
    lines = max(1, -(-top // step))
    return lines * step, step


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:,g}"


def _lanes(scale: _Scale, top: float, lanes: Sequence[str]) -> Iterable[str]:
    yield _text(LEFT, top - 9, "faults", kind="title")
    for number, name in enumerate(lanes):
        y = top + LANE * (number + 0.5)
        yield f'<line class="lane" x1="{LEFT:g}" y1="{y:g}" x2="{scale.x(scale.seconds):g}" y2="{y:g}"/>'
        shown = name if len(name) <= LANE_CHARS else name[: LANE_CHARS - 1] + "…"
        yield f"<g><title>{escape(name)}</title>{_text(LEFT - 8, y + 4, shown, anchor='end')}</g>"


def _times(scale: _Scale, spans: Sequence[tuple[float, float]]) -> Iterable[str]:
    """Draw lines of time through the panels, which lie at `spans`, and name them at the bottom."""
    for at in scale.ticks():
        x = scale.x(at)
        for top, bottom in spans:
            yield f'<line class="grid" x1="{x:.1f}" y1="{top:g}" x2="{x:.1f}" y2="{bottom:g}"/>'
        minutes, seconds = divmod(at, 60)
        yield _text(x, spans[-1][1] + 14, f"{minutes}:{seconds:02}", anchor="middle")


def _mark(scale: _Scale, top: float, lanes: Sequence[str], fault: Fault) -> str:
    x, y = scale.x(fault.at_s), top + LANE * (lanes.index(fault.name) + 0.5)
    end = None if fault.until_s is None else scale.x(fault.until_s)
    what = f"{fault.at_s:.2f} s: {fault.name} (pid {fault.pid}) {KIND_WORDS[fault.kind]}"
    title = f"{what}, {fault.detail}" if fault.detail else what
    return (
        f'<g class="mark {fault.kind}" data-role={quoteattr(fault.role)}>'
        f"<title>{escape(title)}</title>{_glyph(fault.kind, x, y, end)}</g>"
    )


def _glyph(kind: str, x: float, y: float, end: float | None = None) -> str:
    if kind == KILL:
        return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>'
    if kind == CRASH:
        return f'<path d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'
    if kind == FENCED_AFTER:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    width = max(3.0, (x if end is None else end) - x)
    half = 4 if kind == PAUSE else 7
    return f'<rect x="{x:.1f}" y="{y - half:.1f}" width="{width:.1f}" height="{2 * half}"/>'


def _key(y: float) -> Iterable[str]:
    x = LEFT
    for kind, words in KIND_WORDS.items():
        shown = _glyph(kind, x, y - 4, x + 12)
        yield f'<g class="key {kind}">{shown}{_text(x + 18, y, words)}</g>'
        x += 36 + 6.4 * len(words)
