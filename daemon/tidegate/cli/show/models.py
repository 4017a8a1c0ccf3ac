"""`tidegate models`: each upstream with what it has, for a terminal of 80 columns or more.

Names of models are words of other people's servers: they are made printable, and cut where
a line ends.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tidegate.cli.show.columns import Column, fitting_table
from tidegate.cli.show.decode import ModelListing
from tidegate.cli.show.printable import printable
from tidegate.cli.show.screen import duration_text, new_console
from tidegate.core.upstreams.summary import ModelAlias, ModelState, UpstreamModels

_LOADED = {True: "yes", False: "no", None: "unknown"}
_LEAST_NAME, _WANTED_NAME = 16, 48  # columns
_NONE = """\
No upstream is configured, and none was found on this computer's usual ports.
Start Ollama, llama.cpp, LM Studio or vLLM here, or name an [[upstream]] in the config."""


def show_models(listing: ModelListing, console: Console | None = None) -> None:
    """Print a block for each upstream, and the aliases."""
    console = console or new_console()
    if not listing.data:
        console.print(Text(_NONE))
    for upstream in listing.data:
        for style, line in _headlines(upstream):
            text = Text(printable(line.lstrip()), style=style)
            left = len(line) - len(line.lstrip())
            console.print(Padding(text, (0, 0, 0, left), expand=False))
        if upstream.models:
            table = _models_table(upstream.models, console.width - 2)
            console.print(Padding(table, (0, 0, 0, 2), expand=False))
        more = upstream.total - len(upstream.models)
        if more or not upstream.total:
            console.print(f"  and {more} more" if more else "  it has listed no model yet")
        console.print()
    if listing.aliases:
        console.print(_aliases_table(listing.aliases))


def _headlines(upstream: UpstreamModels) -> Iterator[tuple[str, str]]:
    """Return the lines above an upstream's table, each with its style."""
    kind = f" ({upstream.kind})" if upstream.kind not in {None, "other"} else ""
    yield "bold", f"{upstream.name}{kind}: {_state_text(upstream)}"
    yield "dim", f"  {upstream.url}"
    if upstream.last_error:
        yield "", f"  last error: {upstream.last_error}"


def _state_text(upstream: UpstreamModels) -> str:
    if upstream.state == "unknown":
        return "not asked yet"
    if upstream.on_trial:
        return "set aside, one request is trying it"
    if upstream.aside_s is None:
        return upstream.state
    if not upstream.aside_s:
        return "set aside, the next request tries it"
    return f"set aside for {duration_text(upstream.aside_s + 0.999)} more"  # never "0 s more"


def _models_table(models: list[ModelState], width: int) -> Table:
    """Draw the models: a name is what one copies, so that figures go before it is cut."""
    names = [model.name for model in models]
    columns = [Column(name="model", cells=names, least=_LEAST_NAME, wanted=_WANTED_NAME)]
    if any(model.aside_why for model in models):
        columns.append(Column(name="set aside", cells=[_aside_text(model) for model in models]))
    columns.append(Column(name="loaded", cells=[_LOADED[model.loaded] for model in models]))
    waits = [_wait_text(model.first_output_s) for model in models]
    columns.append(Column(name="first output", cells=waits, right=True))
    columns.append(Column(name="speed", cells=[_speed_text(model) for model in models], right=True))
    return fitting_table(columns, ("first output", "speed", "loaded"), width)


def _speed_text(model: ModelState) -> str:
    return "-" if model.per_s is None else f"{_figure(model.per_s)} {model.unit}"


def _aside_text(model: ModelState) -> str:
    """Write "for 4 s", "for 58 s, as it asked", "being tried", or "-"."""
    if not model.aside_why or model.aside_s is None:
        return "-"
    if model.aside_why == "trial":
        return "being tried"
    asked = ", as it asked" if model.aside_why == "retry-after" else ""
    return f"for {duration_text(model.aside_s + 0.999)}{asked}"


def _aliases_table(aliases: list[ModelAlias]) -> Table:
    table = _table("alias", "answered by")
    for alias in aliases:
        levels = alias.levels or [[target] for target in alias.targets]
        cells = (alias.name, ", then ".join(" or ".join(equals) for equals in levels))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _table(*folded: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in folded:
        table.add_column(name, overflow="fold")
    return table


def _wait_text(seconds: float | None) -> str:
    """Write a time as "340 ms", "4.2 s", "1 min 12 s", or "-"."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else duration_text(seconds)


def _figure(per_s: float) -> str:
    return f"{per_s:.1f}" if per_s < 10 else f"{per_s:.0f}"
