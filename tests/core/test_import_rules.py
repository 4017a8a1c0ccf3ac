"""Which part may import which.

core <- machine <- {config, logs} <- managers <- {gateway | watchdog} <- doctor <- cli
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "daemon" / "tidegate"
FLOORS = {
    "core": 0, "machine": 1, "config": 2, "logs": 2, "managers": 3, "gateway": 4, "watchdog": 4,
    "doctor": 5, "cli": 6,
}  # fmt: skip

# What still crosses a floor, because one class of a file belongs elsewhere.
CUT_NEXT = {"core/protocol/reload.py", "gateway/worker.py", "logs/writer.py", "service/worker.py"}

# core is values and decisions: it sees no clock, no I/O, no loop and no chance.
NOT_IN_CORE = {
    "aiohttp", "asyncio", "concurrent", "ctypes", "fcntl", "http", "httptools", "io", "logging",
    "multiprocessing", "os", "pathlib", "psutil", "random", "secrets", "select", "selectors",
    "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid", "uvloop",
    "watchfiles",
}  # fmt: skip
ONLY_IN = {
    "psutil": ("machine/",),
    "aiohttp": ("gateway/",),
    "httptools": ("gateway/",),
    "uvloop": ("gateway/worker.py",),
    "watchfiles": ("gateway/config_watch.py",),
    "daemon": ("watchdog/detach.py",),
    "rich": ("cli/",),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, at_import: bool = False) -> set[str]:
    """Every module that a file names in an import, dotted; also those inside functions.

    With `at_import`, only what is imported when the module is: neither inside functions nor for
    type checkers alone.
    """
    tree = ast.parse(path.read_text(), str(path))
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
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


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def layer_of(module: str) -> int | None:
    parts = module.split(".")
    return FLOORS.get(parts[1]) if parts[0] == "tidegate" and len(parts) > 1 else None


def ours(imports: set[str]) -> set[str]:
    """The modules of this package among them; a name inside a module counts as the module."""
    found = set()
    for name in imports:
        if name in MODULES:
            found.add(name)
        elif name.startswith("tidegate") and (parent := name.rpartition(".")[0]) in MODULES:
            found.add(parent)
    return found


def closure(start: str) -> set[str]:
    """Every module that importing `start` imports, ours followed and others named."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in MODULES:
            imports = imports_of(MODULES[module], at_import=True)
            pending += ours(imports)
            seen |= {name.split(".")[0] for name in imports if not name.startswith("tidegate")}
            package = module.rpartition(".")[0]
            if package:
                pending.append(package)
    return seen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_file_imports_only_what_its_layer_may(path: Path) -> None:
    """None imports upwards or its neighbour, core fetches nothing."""
    here = path.relative_to(PACKAGE).as_posix()
    own = path.relative_to(PACKAGE).parts[0]
    for name in imports_of(path):
        top = name.split(".")[0]
        layer = layer_of(name)
        if layer is not None and own in FLOORS:
            other = name.split(".")[1]
            below = layer < FLOORS[own] or other == own
            assert below or here in CUT_NEXT, f"{here} imports {name}"
        if own == "core":
            assert top not in NOT_IN_CORE, f"{here} imports {name}"
            inside = top != "tidegate" or name == "tidegate.core" or layer == 0
            assert inside or here in CUT_NEXT, f"{here}: {name}"
        if top in ONLY_IN:
            assert here.startswith(ONLY_IN[top]), f"{here} imports {name}"


def test_the_watchdog_stays_small() -> None:
    """What outlives everything drags in neither the gateway nor an event loop."""
    if "tidegate.watchdog.watchdog" not in MODULES:
        pytest.skip("there is no watchdog yet")
    reached = closure("tidegate.watchdog.watchdog")
    assert not {name for name in reached if name.startswith("tidegate.gateway")}
    assert not reached & {"asyncio", "aiohttp", "uvloop", "watchfiles", "httptools", "rich"}


def test_the_worker_takes_only_its_own_heap_from_the_machine() -> None:
    """The worker is judged from outside; of the machine it needs its own heap."""
    if "tidegate.gateway.worker" not in MODULES:
        pytest.skip("there is no worker yet")
    reached = closure("tidegate.gateway.worker")
    reads = {name for name in reached if name.startswith("tidegate.machine.")}
    assert reads <= {f"tidegate.machine.{name}" for name in ("heap", "collector", "private_file")}


@pytest.mark.parametrize("folder", ["daemon", "packaging", "systemd", "launchd", "tests"])
def test_no_folder_takes_a_name_that_is_not_ours(folder: str) -> None:
    """`daemon`, `packaging` and `systemd` are import names of others: they are no packages here."""
    assert not (ROOT / folder / "__init__.py").exists()


def test_test_files_have_names_of_their_own() -> None:
    """Two tests of one name would hide each other in reports."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_the_rules_are_really_looked_at(tmp_path: Path) -> None:
    """The reader of imports finds them at the top, in functions and in both forms."""
    source = tmp_path / "x.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nimport a.b\nfrom c import d\n"
        "if TYPE_CHECKING:\n    import e\ndef f():\n    import g\n"
    )
    assert imports_of(source) == {"typing", "typing.TYPE_CHECKING", "a.b", "c", "c.d", "e", "g"}
    at_import = imports_of(source, at_import=True)
    assert {"a.b", "c", "c.d"} <= at_import
    assert not at_import & {"e", "g"}
    assert len(FILES) > 10


DECODES = re.compile(
    r"(msgspec\.)?(json|toml|yaml|msgpack)\.(decode|Decoder|loads?)"
    r"|(tomllib|plistlib|pickle|marshal)\.loads?"
)


def decodings_in(source: str) -> set[str]:
    """The calls in it that make values of bytes by themselves."""
    nodes = ast.walk(ast.parse(source))
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return {name for name in names if DECODES.fullmatch(name)}


def test_the_watchdog_decodes_in_one_place() -> None:
    """What it reads from outside raises one error: no file but `core.decoding` decodes."""
    reached = closure("tidegate.watchdog.watchdog") & MODULES.keys()
    reached |= {"tidegate.gateway.worker", "tidegate.cli.verbs.run", "tidegate.config.document"}
    found = {name: decodings_in(MODULES[name].read_text()) for name in sorted(reached)}
    assert {name for name, calls in found.items() if calls} == {"tidegate.core.decoding"}
    assert decodings_in("msgspec.json.decode(b'')\njson.loads('')\ntomllib.load(f)") == {
        "msgspec.json.decode", "json.loads", "tomllib.load"
    }  # fmt: skip
