"""The rooms of the source and which imports which: `make map` prints it, a test holds it.

A *wing* is a folder of `tidegate`, a *room* a folder in it. A file that lies in the wing itself is
a room of its own: what the whole wing stands on, or what puts it together.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "daemon" / "tidegate"

# core <- machine <- {config, logs} <- managers <- {gateway | watchdog} <- doctor <- cli
FLOORS = {
    "core": 0, "machine": 1, "config": 2, "logs": 2, "managers": 3, "gateway": 4, "watchdog": 4,
    "doctor": 5, "cli": 6,
}  # fmt: skip
FORMER = "service"  # what former versions look for; it goes with the next release

FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != FORMER
)


def module_name(path: Path) -> str:
    """As an import names it."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(path: Path, *, at_import: bool = False) -> set[str]:
    """Every module that a file names in an import, dotted; also those inside functions.

    With `at_import`, only what is imported when the module is: neither inside functions nor for
    type checkers alone.
    """
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(), str(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return found


def ours(imports: Iterable[str]) -> set[str]:
    """The modules of this package among them; a name inside a module counts as the module.

    `from tidegate.core import decoding` names the module, and not its package.
    """
    found = set()
    names = set(imports)
    for name in names:
        if name in MODULES:
            is_package = MODULES[name].name == "__init__.py"
            if not is_package or not any(
                each.startswith(f"{name}.") for each in names & MODULES.keys()
            ):
                found.add(name)
        elif name.startswith("tidegate") and (parent := name.rpartition(".")[0]) in MODULES:
            found.add(parent)
    return found


def room_of(module: str) -> str:
    """ "gateway/relay" for a file in that room; one that lies in the wing itself stands alone."""
    *rooms, file = MODULES[module].relative_to(PACKAGE).parts
    return "/".join(rooms if len(rooms) > 1 else [*rooms, file])


def arrows() -> dict[str, Counter[str]]:
    """By room, which other rooms it imports, and how many imports that are."""
    found: dict[str, Counter[str]] = {room_of(module): Counter() for module in MODULES}
    for module, path in MODULES.items():
        here = room_of(module)
        found[here].update(
            room_of(each) for each in ours(imports_of(path)) if room_of(each) != here
        )
    return found


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of it, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def in_order(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """What stands on the others first. Raises CycleError."""
    return [*TopologicalSorter(graph).static_order()][::-1]


def main() -> None:
    """Print the wings with what they stand on, and in each its rooms, the highest first."""
    found = arrows()
    files = Counter(room_of(module) for module in MODULES)
    wings: dict[str, set[str]] = {wing: set() for wing in FLOORS}
    for room, below in found.items():
        if room[0] != "_":
            wings[room.split("/")[0]].update(each.split("/")[0] for each in below)
    for wing in sorted(FLOORS, key=lambda each: -FLOORS[each]):
        below = ", ".join(
            sorted(wings[wing] & FLOORS.keys() - {wing}, key=lambda each: -FLOORS[each])
        )
        print(f"\n{wing:14} <- {below or 'nothing'}")
        inside = {
            room: [each for each in below if each.startswith(f"{wing}/")]
            for room, below in found.items()
            if room.startswith(f"{wing}/") and (below or not room.endswith("/__init__.py"))
        }
        for room in in_order(inside):
            name = room.removeprefix(f"{wing}/")
            size = f"{files[room]} files" if not room.endswith(".py") else ""
            arrow = (
                f"<- {', '.join(sorted(each.removeprefix(f'{wing}/') for each in inside[room]))}"
            )
            print(f"    {name:18} {size:9} {arrow if inside[room] else ''}".rstrip())
    print(f"\n{len(MODULES)} modules, no circle")


if __name__ == "__main__":
    main()
