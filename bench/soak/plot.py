"""The soak as a picture: memory, what is held, and what happened when."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soak.judge import MIB, Sample

COLOURS = ("#20639b", "#3caea3", "#ed553b", "#8a6d3b")
Curve = tuple[str, Callable[[Sample], float | None]]


def draw(path: Path, samples: list[Sample], happened: list[tuple[float, str]], title: str) -> None:
    """Write a PNG."""
    mpl.use("Agg")
    figure = Figure(figsize=(12, 10), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True, height_ratios=(3, 1.3, 1.7, 1.7))
    figure.suptitle(title)
    _panel(
        axes[0],
        samples,
        "worker, MiB",
        ("resident", lambda s: _mib(s.worker_rss_bytes)),
        ("resident - ledger", _unexplained),
        ("ledger", lambda s: _mib(s.ledger_bytes)),
    )
    _panel(axes[1], samples, "watchdog, MiB", ("resident", lambda s: _mib(s.watchdog_rss_bytes)))
    _panel(
        axes[2],
        samples,
        "runs and connections",
        ("active runs", lambda s: s.active),
        ("finished runs", lambda s: s.finished),
        ("clients", lambda s: s.connections),
    )
    _panel(
        axes[3],
        samples,
        "descriptors, threads",
        ("worker's descriptors", lambda s: s.worker_descriptors),
        ("watchdog's descriptors", lambda s: s.watchdog_descriptors),
        ("worker's threads", lambda s: s.worker_threads),
    )
    for axis in axes:
        _shade(axis, samples)
        for at_s, _ in happened:
            axis.axvline(at_s / 60, color="#bbbbbb", linewidth=0.5, zorder=0)
    if len(happened) <= 60:  # beyond that they cannot be read
        for at_s, what in happened:
            axes[0].annotate(
                what, (at_s / 60, 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=6,
                va="top", ha="right", color="#777777",
            )  # fmt: skip
    axes[3].set_xlabel("minutes; grey lines: something was done to it; grey ground: measured")
    figure.savefig(path, dpi=110)


def _panel(axis: Axes, samples: list[Sample], title: str, *curves: Curve) -> None:
    for (name, value), colour in zip(curves, COLOURS, strict=False):
        # A curve is broken where no answer came and where another worker begins.
        at: list[float] = []
        values: list[float] = []
        for former, sample in pairwise([samples[0], *samples]):
            if sample.generation != former.generation:
                at.append(sample.at_s / 60)
                values.append(float("nan"))
            found = value(sample)
            at.append(sample.at_s / 60)
            values.append(float("nan") if found is None else found)
        axis.plot(at, values, label=name, color=colour, linewidth=1)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.1)
    axis.legend(fontsize=7, loc="upper right")
    axis.grid(visible=True, axis="y", linewidth=0.3)


def _shade(axis: Axes, samples: list[Sample]) -> None:
    """Shade the ground where the quarters are."""
    for quarter, during in groupby(samples, key=lambda sample: sample.quarter):
        if quarter is not None:
            at = [sample.at_s / 60 for sample in during]
            axis.axvspan(at[0], at[-1], color="#f2f2f2", linewidth=0, zorder=-1)


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def _unexplained(sample: Sample) -> float | None:
    if sample.worker_rss_bytes is None or sample.ledger_bytes is None:
        return None
    return (sample.worker_rss_bytes - sample.ledger_bytes) / MIB
