"""When we ourselves did what a client may notice: the only times at which it may."""

from __future__ import annotations

from dataclasses import dataclass, field

FORGET_AFTER_S = 300.0  # no client stays so long


@dataclass(eq=False)
class Excuses:
    """Spans of `time.monotonic()` in which a worker was killed, or finished runs were swept."""

    _kills: list[tuple[float, float]] = field(default_factory=list)
    _sweeps: list[tuple[float, float]] = field(default_factory=list)

    def kill(self, from_s: float, until_s: float) -> None:
        """Note that a worker died, or will be ended as hung, in this span."""
        self._add(self._kills, from_s, until_s)

    def sweep(self, from_s: float, until_s: float) -> None:
        """Note that finished runs were released in this span."""
        self._add(self._sweeps, from_s, until_s)

    def killed(self, began_s: float, ended_s: float) -> bool:
        """Tell whether a client that was there from then till then may have lost its worker."""
        return _meets(self._kills, began_s, ended_s)

    def swept(self, began_s: float, ended_s: float) -> bool:
        """Tell whether a run of that time may have been swept."""
        return _meets(self._sweeps, began_s, ended_s)

    @staticmethod
    def _add(spans: list[tuple[float, float]], from_s: float, until_s: float) -> None:
        spans[:] = [span for span in spans if span[1] > from_s - FORGET_AFTER_S]
        spans.append((from_s, until_s))


def _meets(spans: list[tuple[float, float]], began_s: float, ended_s: float) -> bool:
    return any(from_s <= ended_s and began_s <= until_s for from_s, until_s in spans)
