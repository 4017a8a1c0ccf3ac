"""Noise from measured memory: what a healthy worker's resident memory does above its floor."""

from __future__ import annotations

import json
from pathlib import Path

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"
FLOOR_S = 15.0  # a recording of minutes also warms up; over longer its ramp would pass for noise


def load(folder: Path = RECORDINGS) -> tuple[list[int], list[str]]:
    """Bytes above the floor, in order, of all recordings; and what they are of. Empty: none."""
    noise: list[int] = []
    about: list[str] = []
    for path in sorted(folder.glob("*.json")):
        recording = json.loads(path.read_text())
        pairs = zip(recording["rss_bytes"], recording["ledger_bytes"], strict=True)
        noise += above_floor([rss - ledger for rss, ledger in pairs], float(recording["period_s"]))
        about.append(f"{path.name}: {recording['about']}")
    return noise, about


def above_floor(unexplained: list[int], period_s: float) -> list[int]:
    """How far each reading is above the least of the seconds it lies in."""
    width = max(1, int(FLOOR_S / period_s))
    above: list[int] = []
    for start in range(0, len(unexplained), width):
        part = unexplained[start : start + width]
        above += [value - min(part) for value in part]
    return above
