"""The pictures that commands write, as PNG bytes: grids of images, clouds of points, tables of rows, loss curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

__all__ = ["curve", "grid", "picture", "png"]

BEHIND = "#d5dde5"
SHOWN = 2000  # points, or rows of a table, in a picture


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _axes(size: tuple[float, float]) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'generant[demo]'") from None
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def picture(x: np.ndarray, **options: Any) -> bytes:
    """Samples as what they are: images (n, h, w) or (n, h, w, c) as a `grid`, points (n, 2) as a cloud, other rows
    (n, d) as the lines of a table.

    options: `columns`, `labels`, `bounds`, `title` of `grid`; the others take what they have use for.
    """
    if x.ndim > 2:
        return grid(x, **options)
    title = options.get("title", "")
    if x.shape[1] == 2:
        return _cloud(x[:SHOWN], title, options.get("bounds"))
    figure, axes = _axes((6.4, 4.8))
    drawn = axes.imshow(x[:SHOWN], aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set(xlabel="feature", ylabel="sample", title=title)
    figure.colorbar(drawn)
    return png(figure)


def grid(
    images: np.ndarray, *, columns: int | None = None, labels: Sequence[Any] = (), bounds: Any = None, title: str = "",
    ink: bool = False,
) -> bytes:  # fmt: skip
    """Images in rows of `columns`, as square as may be if None.

    images (n, h, w) or (n, h, w, c), c = 1 or 3; others show their first channel. labels: one per row, at the left.
    bounds: (low, high), the numbers of the darkest and the brightest pixel; if None what a byte or a fraction holds.
    ink: high is dark, for grey images.
    """
    x = images if images.ndim == 4 else images[..., None]
    x = x if x.shape[-1] == 3 else x[..., :1]
    low, high = bounds if bounds is not None else (0, 255 if images.dtype == np.uint8 else 1)
    x = np.clip((x.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
    n, h, w, c = x.shape
    columns = columns or math.ceil(math.sqrt(n * h / w))
    rows, gap = math.ceil(n / columns), 1 if max(h, w) < 64 else 2
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, c), np.nan)
    for i, image in enumerate(x):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    height, width = canvas.shape[:2]
    unit = 5.2 / max(height, width)
    figure, axes = _axes((max(1.5, width * unit), max(0.7, height * unit) + (0.3 if title else 0.0)))
    if c == 1:
        colours: Any = "gray_r" if ink else "gray"
        axes.imshow(np.ma.masked_invalid(canvas[..., 0]), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    else:
        blank = np.isnan(canvas).any(-1)
        canvas[blank] = [int(BEHIND[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        axes.imshow(canvas, interpolation="nearest")
    axes.set_facecolor(BEHIND)
    axes.set_yticks([gap + i * (h + gap) + h / 2 - 0.5 for i in range(len(labels))], [str(label) for label in labels])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=11)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=11)
    return png(figure)


def _cloud(x: np.ndarray, title: str, bounds: Any) -> bytes:
    figure, axes = _axes((4.6, 4.6))
    axes.plot(x[:, 0], x[:, 1], ".", markersize=3 if len(x) > 200 else 7, alpha=0.5, color="#1f4e79")
    if bounds is not None:
        margin = 0.08 * (bounds[1] - bounds[0])
        axes.set(xlim=(bounds[0] - margin, bounds[1] + margin), ylim=(bounds[0] - margin, bounds[1] + margin))
    axes.set_aspect("equal")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def curve(history: list[dict[str, Any]], *, ylabel: str = "loss") -> bytes:
    """Losses by step: of every epoch, and averaged over a twentieth of the run."""
    figure, axes = _axes((5.6, 3.4))
    steps = [h["step"] for h in history]
    names = [k for k in dict.fromkeys(k for h in history for k in h) if k == "loss" or k.endswith("_loss")]
    width = max(1, len(history) // 20)
    colours = (("#9db4c8", "#1f4e79"), ("#e3b9a4", "#b4532a"), ("#b5d3ac", "#3d7a2c"), ("#cbbcdc", "#5f3d8a"))
    for name, (pale, strong) in zip(names, colours, strict=False):
        losses = np.array([np.nan if h.get(name) is None else h[name] for h in history], np.float64)
        padded = np.pad(losses, (width // 2, width - 1 - width // 2), mode="edge")
        smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
        alone = len(names) == 1
        told = "mean of an epoch" if alone else name.replace("_", " ")
        if width == 1:
            axes.plot(steps, losses, color=strong, linewidth=1.8, label=told)
            continue
        axes.plot(steps, losses, color=pale, linewidth=0.8, label=told if alone else None)
        told = f"mean of {width} epochs" if alone else f"{told}, mean of {width} epochs"
        axes.plot(steps, smooth, color=strong, linewidth=1.8, label=told)
    axes.set(xlabel="training step", ylabel=ylabel, xlim=(0, steps[-1]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(figure)
