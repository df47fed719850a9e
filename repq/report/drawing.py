"""What all drawings share: their style, and how they become SVG.

Text stays text and colours are CSS variables, so a drawing follows the page's theme. Matplotlib is imported inside the
functions; no global state of it is touched but within ``rc_context``.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from repq.printable import printable, printable_lines
from repq.privacy import keep_matplotlib_out_of_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stand-ins that nothing else draws with; `svg_text` puts the CSS variables in their place.
INK, FAINT, FLOAT, INT8, SERIES_A, SERIES_B, BAD, HALF = (f"#0102{n:02x}" for n in range(8))
_VARIABLES = {
    INK: "--ink-soft",
    FAINT: "--line",
    FLOAT: "--c-float",
    INT8: "--c-int8",
    SERIES_A: "--c-a",
    SERIES_B: "--c-b",
    BAD: "--bad",
    HALF: "--c-half",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "repq",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
}


@contextmanager
def panels(width: float, heights: Sequence[float]) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the report's style with axes one above the other, of these heights in inches."""
    keep_matplotlib_out_of_home()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style must not change the report
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        found = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
        yield figure, list(found[:, 0])


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes."""
    with panels(width, [height]) as (figure, (axes,)):
        yield figure, axes


def svg_text(figure: Figure, name: str) -> str:
    """Render to an SVG element for inline use: no prologue, metadata, namespace links or ids that could clash."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text, so a glyph that the measuring font lacks is drawn by the browser.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Place all by the measures of SVG here: `savefig` would draw everything once more to have it placed.
        FigureCanvasSVG(figure)
        figure.set_dpi(72)
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
        figure.set_layout_engine(None)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(rf'<g id="{_NAMED}([^"]*)">', r"<g><title>\1</title>", text)
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referred else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    return printable_lines(text.strip())


def standalone(svg: str, style: str) -> str:
    """A drawing as a file of its own; ``style`` is CSS that defines the page's colours."""
    opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    style = f"<style>{style}\nsvg {{ background: var(--sheet); }}</style>"
    head, body = svg.replace("<svg", opening, 1).split(">", 1)
    return f"{head}>\n{style}{body}\n"


_NAMED = "named: "
LAYERS = "layer, in model order (its number in the table)"


def layer_axis(axes: Axes, layers: Sequence[str], label: str = LAYERS, columns: int = 3) -> None:
    """Number the layers along the bottom, with the legend above; a browser names the one under the pointer."""
    from matplotlib.ticker import MaxNLocator

    for place, name in enumerate(layers, start=1):  # a fill of no opacity at all would not be written
        axes.axvspan(place - 0.5, place + 0.5, alpha=0.004, linewidth=0, zorder=5, gid=f"{_NAMED}{place}: {name}")
    axes.set_xlim(0.2, max(len(layers), 2) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel(label)
    axes.grid()
    legend(axes, columns)


def legend(axes: Axes, columns: int) -> None:
    """Put the legend above the axes, on the left."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.4)


def layer_curve(
    axes: Axes, values: Sequence[float | None], colour: str, name: str, *, logarithmic: bool = False
) -> None:
    """A value per layer, in model order; a gap where there is none, or none that the axis can show."""
    shown = [value if value is not None and math.isfinite(value) and (value > 0 or not logarithmic) else math.nan
             for value in values]  # fmt: skip
    axes.plot(range(1, len(shown) + 1), shown, color=colour, linewidth=1.3, marker="o", markersize=2.4, label=name)


def shade(axes: Axes, places: Sequence[int], name: str | None) -> None:
    """Mark layers, by their number from 1; a name of None keeps them out of the legend."""
    for number, place in enumerate(places):
        label = None if number else name
        axes.axvspan(place - 0.5, place + 0.5, color=FLOAT, alpha=0.22, linewidth=0, label=label)


def name_bars(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    """Name horizontal bars on the left; nothing in a name is read as a formula."""
    axes.set_yticks(places, [literal(name) for name in names])
    axes.tick_params(axis="y", length=0)


def literal(text: str) -> str:
    """Keep matplotlib from reading formulas into a text, and from meeting what no font has."""
    return printable(text).replace("$", r"\$")
