"""What a caller is told to do about an error."""

from __future__ import annotations

import pytest

from tidegate.core.runs.advice import advise


@pytest.mark.parametrize("code", ["upstream_500", "upstream_503", "upstream_529", "upstream_ended"])
def test_a_broken_upstream_is_looked_at_in_its_own_log(code: str) -> None:
    """Whichever status of its own faults it answered with, those of a proxy included."""
    assert advise("it broke", code) == "it broke; its own log may say why; ask again"


@pytest.mark.parametrize("code", [None, "upstream_404", "upstream_418", "no_such_code"])
def test_a_reason_without_advice_stands_alone(code: str | None) -> None:
    """What the gateway knows nothing about it leaves as it is."""
    assert advise("it broke", code) == "it broke"
