"""Draw the drain rates as an SVG: one bar for the default and one for the best of each queue.

    uv run benchmarks/chart.py      draws drain.svg again from results.json

Owns the picture. Never measures, and needs nothing but the standard library: all is in
presentation attributes, in colours that can be read on a light and on a dark page.
"""

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

FOLDER = Path(__file__).resolve().parent

# Pixels: the column of names, the scale, the row of one queue, and the bars in it.
NAMES, SCALE, ROW, BAR = 170, 500, 46, 16
WIDTH, TOP, BOTTOM = NAMES + SCALE + 90, 58, 34

# Mid tones: more than 3:1 on white and on GitHub's dark background. Ours, and all others.
COLOURS = {True: ("#2f81c7", "#6aa9dd"), False: ("#80868e", "#a3a8ae")}
INK = "#747a81"
FONT = "font-family='system-ui, sans-serif'"


def drain(figures: dict[str, Any]) -> str:
    """Return the SVG of the drains in `figures`, at the smallest backlog measured."""
    rates = drains(figures["rows"])
    highest = max((rate for pair in rates.values() for rate in pair.values()), default=1.0)
    top = 10 ** math.ceil(math.log10(max(highest, 10)))
    height = TOP + ROW * len(rates) + BOTTOM
    said = "; ".join(f"{name}: {spoken(pair)}" for name, pair in rates.items())
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' role='img' "
        f"width='{WIDTH}' height='{height}' aria-labelledby='title desc'>",
        "<title id='title'>No-op tasks drained per second, default and best</title>",
        f"<desc id='desc'>{escape(said)}. {escape(figures['machine'])}.</desc>",
        *heading(),
        *grid(top, height),
        *(line for at, row in enumerate(rates.items()) for line in bars(at, *row, top)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def drains(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the medians by queue and setting, the fastest queue first; none if not measured."""
    found: dict[str, dict[str, float]] = {}
    details = [row["detail"] for row in rows if row["measure"] == "drain"]
    for row in rows:
        pair = found.setdefault(row["peer"], {})
        if row["measure"] == "drain" and row["detail"] == details[0] and row["values"]:
            pair[row["setting"]] = statistics.median(row["values"])
    return dict(sorted(found.items(), key=lambda item: -max(item[1].values(), default=0)))


def spoken(pair: dict[str, float]) -> str:
    """Return the rates of one queue as text."""
    return ", ".join(f"{name} {rate:,.0f}" for name, rate in pair.items()) or "not measured"


def heading() -> Iterator[str]:
    """Yield the title and the key."""
    yield text(0, 18, "No-op tasks drained per second (log scale)", "font-weight='600'", size=15)
    yield text(0, 38, "upper bar: default; lower bar: best of the settings tried")


def grid(top: float, height: int) -> Iterator[str]:
    """Yield a line and a label for each power of ten."""
    for power in range(round(math.log10(top)) + 1):
        x = NAMES + SCALE * power / math.log10(top)
        yield (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{TOP - 6}' y2='{height - BOTTOM + 4}' "
            f"stroke='{INK}' stroke-opacity='0.35'/>"
        )
        yield text(x, height - 12, f"{10**power:,}", "text-anchor='middle'")


def bars(at: int, name: str, pair: dict[str, float], top: float) -> Iterator[str]:
    """Yield the row of one queue."""
    y = TOP + ROW * at
    ours = name == "dbtasks"
    weight = " font-weight='700'" if ours else ""
    yield f"<g role='img' aria-label={quoteattr(f'{name}: {spoken(pair)} tasks per second')}>"
    yield text(NAMES - 10, y + BAR + 5, name, f"text-anchor='end'{weight}", size=14)
    for nth, setting in enumerate(("default", "best")):
        rate = pair.get(setting, 0.0)
        length = SCALE * max(math.log10(max(rate, 1.0)) / math.log10(top), 0.004)
        top_edge = y + nth * (BAR + 2)
        yield (
            f"<rect x='{NAMES}' y='{top_edge}' width='{length:.1f}' height='{BAR}' rx='2' "
            f"fill='{COLOURS[ours][nth]}'/>"
        )
        shown = f"{rate:,.0f}" if rate else "not measured"
        yield text(NAMES + length + 6, top_edge + BAR - 4, shown, weight.strip())
    yield "</g>"


def text(x: float, y: float, words: str, attributes: str = "", size: int = 12) -> str:
    """Return a line of text."""
    return (
        f"<text x='{x:.1f}' y='{y}' {FONT} font-size='{size}' fill='{INK}' {attributes}>"
        f"{escape(words)}</text>"
    )


def main() -> None:
    """Draw the chart again from the figures that were saved."""
    figures = json.loads((FOLDER / "results.json").read_text())
    (FOLDER / "drain.svg").write_text(drain(figures))


if __name__ == "__main__":
    main()
