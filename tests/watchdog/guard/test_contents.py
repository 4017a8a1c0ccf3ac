"""What a bundle of evidence shows, and that no key is in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.core import settings
from tidegate.core.runs.summary import RunSummary
from tidegate.core.settings import Settings
from tidegate.watchdog.guard.contents import show_settings
from watchdog.guard.test_evidence import KEY, Rig, config


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.evidence.close()


def test_no_key_is_in_it_wherever_it_went(rig: Rig) -> None:
    """Neither from the settings, nor from a reason in which an upstream repeats it."""
    run = RunSummary(
        id="run_1", state="failed", reason=f"refused with 401 ({KEY})", model=f"a prompt, {KEY}?",
        upstream="cloud", attempts=1, created=1.0, ended=2.0, first_seq=0, next_seq=1, bytes=1,
        subscribers=0,
    )  # fmt: skip
    rig.gather("kill", f"{KEY}, it said")
    rig.answer(1, runs=[run], runs_total=1)
    rig.answer(2)
    rig.wait_written()
    [path] = (rig.state_dir / "bundles").iterdir()
    assert KEY not in path.read_text()
    assert "canary" not in path.name
    assert "MISPLACED" not in path.read_text()
    [read] = rig.bundles()
    assert read["runs"][0]["reason"] == "refused with 401 (***)"
    assert read["runs"][0]["model"] == f"(a name of {len(run.model)} characters)"
    assert read["settings"]["upstream"][0]["api_key_env"] is True
    assert read["settings"]["upstream"][0]["api_key_file"] is False


def test_every_setting_that_may_be_secret_is_known() -> None:
    """A developer who adds one decides here whether a bundle may show it."""
    tables = [each for each in vars(settings).values() if isinstance(each, type(Settings))]
    names = {name for table in tables for name in table.__struct_fields__}
    words = ("key", "token", "secret", "pass", "auth", "credential", "url")
    suspicious = {name for name in names if any(word in name for word in words)}
    hidden = {"api_key_env", "api_key_file"}
    places = {"url", "url_env", "url_file"}
    assert suspicious == hidden | places | {
        "auth",
        "tokens_file",
        "allow_without_token",
        "api_key_header",
    }
    [upstream] = show_settings(config().settings)["upstream"]  # type: ignore[misc]
    assert all(isinstance(upstream[name], bool) for name in hidden)
    secret = dict.fromkeys(places, "CANARY")
    shown = show_settings(
        Settings(notify=[settings.Notify(**secret)], heartbeat=settings.OutwardHeartbeat(**secret))
    )
    assert "CANARY" not in str(shown)
    assert shown["heartbeat"] == {"every_s": 60.0}
