"""Each public class of the package has a name of its own, so that a search finds one meaning."""

import ast
from collections import defaultdict
from pathlib import Path

from house import FILES, PACKAGE


def public_classes(path: Path) -> list[str]:
    """List the public classes at the top level of a file."""
    return [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def test_no_two_public_classes_share_a_name() -> None:
    """A `State` in four rooms is four riddles: a RunState and a BreakerState are none."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for name in public_classes(path):
            homes[name].append(path.relative_to(PACKAGE).as_posix())
    assert len(homes) > 300, "the classes are looked for in the wrong place"
    shared = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert not shared
