"""Which part may import which.

core <- machine <- {config, logs} <- managers <- {gateway | watchdog} <- doctor <- cli
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from house import FILES, FLOORS, MODULES, PACKAGE, ROOT, arrows, circle, imports_of, main, ours

# core is values and decisions: it sees no clock, no I/O, no loop and no chance.
NOT_IN_CORE = {
    "aiohttp", "asyncio", "concurrent", "ctypes", "fcntl", "http", "httptools", "io", "logging",
    "multiprocessing", "os", "pathlib", "psutil", "random", "secrets", "select", "selectors",
    "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid", "uvloop",
    "watchfiles",
}  # fmt: skip
ONLY_IN = {
    "psutil": "machine/",
    "aiohttp": ("gateway/", "doctor/software.py"),
    "httptools": "gateway/",
    "uvloop": "gateway/worker.py",
    "watchfiles": "gateway/config_watch.py",
    "daemon": "watchdog/detach.py",
    "rich": "cli/",
}


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
def test_each_file_imports_only_what_lies_below(path: Path) -> None:
    """Its own wing or a lower floor: so the two processes never import each other."""
    here = path.relative_to(PACKAGE).as_posix()
    wing = here.split("/")[0]
    for name in imports_of(path):
        top, *inner = name.split(".")
        if top == "tidegate" and inner and inner[0] in FLOORS and wing in FLOORS:
            assert inner[0] == wing or FLOORS[inner[0]] < FLOORS[wing], f"{here} imports {name}"
        assert wing != "core" or top not in NOT_IN_CORE, f"{here} imports {name}"
        assert here.startswith(ONLY_IN.get(top, "")), f"{here} imports {name}"


def test_there_is_no_circle() -> None:
    """Neither of files nor of rooms."""
    assert not circle({name: ours(imports_of(path)) - {name} for name, path in MODULES.items()})
    assert not circle(arrows())
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]})


def test_no_room_is_a_corridor() -> None:
    """A folder of more than 15 files is not read any more: two are, since their files are alike."""
    sizes = Counter(path.parent.relative_to(PACKAGE).as_posix() for path in FILES)
    for room, size in sizes.items():
        assert size <= (25 if room in {"gateway/api", "cli/verbs"} else 15), room


def test_no_file_and_no_class_is_too_long() -> None:
    """A file of 450 lines, a class of 350: what is longer holds two nouns."""
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 350, f"{path}: {node.name}"


def test_each_package_states_its_rule() -> None:
    """In the docstring of its `__init__`."""
    for path in FILES:
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text()))
            assert text is not None, path
            assert len(text) > 20, path


def test_the_map_shows_every_wing(capsys: pytest.CaptureFixture[str]) -> None:
    """`make map`."""
    main()
    shown = capsys.readouterr().out
    assert all(f"\n{wing} " in shown for wing in FLOORS)
    assert "gateway.py                   <- records, relay, server, " in shown


def test_the_watchdog_stays_small() -> None:
    """What outlives everything drags in neither the gateway nor an event loop."""
    reached = closure("tidegate.watchdog.start")
    assert not {name for name in reached if name.startswith("tidegate.gateway")}
    assert not reached & {"asyncio", "aiohttp", "uvloop", "watchfiles", "httptools", "rich"}


def test_the_worker_takes_only_its_own_heap_from_the_machine() -> None:
    """The worker is judged from outside; it needs its own heap, and whether another one lives."""
    reached = closure("tidegate.gateway.worker")
    reads = {name for name in reached if name.startswith("tidegate.machine.")}
    assert reads <= {
        f"tidegate.machine.{name}"
        for name in ("heap", "collector", "lifetime", "private_file", "procfile", "signals")
    }


def test_the_worker_takes_only_a_part_of_aiohttp() -> None:
    """`aiohttp.web` brings its router, its files and argparse along, to stay in memory."""
    code = "import sys, tidegate.gateway.worker; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(ran.stdout.split())
    assert "aiohttp.web_protocol" in loaded
    assert not loaded & {"aiohttp.web", "aiohttp.web_app", "aiohttp.web_urldispatcher", "argparse"}
    assert "tomllib" not in loaded  # settings come as JSON


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
    """What it reads from outside raises one error: only two files of `core` decode."""
    reached = closure("tidegate.watchdog.start") & MODULES.keys()
    reached |= {"tidegate.gateway.worker", "tidegate.cli.verbs.run", "tidegate.config.document"}
    found = {name: decodings_in(MODULES[name].read_text()) for name in sorted(reached)}
    assert {name for name, calls in found.items() if calls} == {
        "tidegate.core.decoding",
        "tidegate.core.toml",
    }
    assert decodings_in("msgspec.json.decode(b'')\njson.loads('')\ntomllib.load(f)") == {
        "msgspec.json.decode", "json.loads", "tomllib.load"
    }  # fmt: skip
