"""What shells are told about the command, and its manual page."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shell.completion import SHELLS
from shell.grammar import WordKind, read
from shell.manual import manual
from tidegate.cli.main import main
from tidegate.cli.parser import command_line
from tidegate.cli.shell import completion
from tidegate.cli.shell.completion import SCRIPTS

SHIPPED = Path(completion.__file__).parent
Complete = Callable[[str], set[str]]


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_shipped_completion_is_of_this_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `tidegate completion` prints knows the verbs that there are: `make generated`."""
    assert main(["completion", shell]) == 0
    assert capsys.readouterr().out == SHELLS[shell](read(command_line()))


def test_shipped_manual_page_is_of_this_command() -> None:
    """The manual page of the package tells of the verbs that there are: `make generated`."""
    assert manual(read(command_line())) == (SHIPPED / "tidegate.1").read_text()


def test_unknown_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A shell that is not known is wrong usage."""
    assert main(["completion", "csh"]) == 64
    assert "bash" in capsys.readouterr().err


def test_grammar_has_every_verb_and_flag() -> None:
    """The value read from a parser has its verbs within verbs, its flags, and what follows each."""
    parser = argparse.ArgumentParser(prog="ship", add_help=False, description="A ship.")
    verbs = parser.add_subparsers()
    sail = verbs.add_parser("sail", add_help=False, description="Go. Or drift.")
    sail.add_argument("--chart", metavar="FILE", help="100%% of the coast")
    sail.add_argument("--hidden", help=argparse.SUPPRESS)
    sail.add_argument("course", choices=("north", "south"))
    under = verbs.add_parser("crew", add_help=False).add_subparsers()
    under.add_parser("sail", add_help=False).add_argument("--all", action="store_true")
    found = read(parser)
    assert [" ".join(verb.path) for verb in found.walk()] == ["", "sail", "crew", "crew sail"]
    [flag] = found.verbs[0].flags
    assert (flag.names, flag.kind, flag.help) == (("--chart",), WordKind.FILE, "100% of the coast")
    [argument] = found.verbs[0].arguments
    assert (argument.kind, argument.choices) == (WordKind.CHOICE, ("north", "south"))
    assert found.verbs[1].verbs[0].flags[0].kind is WordKind.NOTHING


# --- the shells themselves ---------------------------------------------------------------------


def bash(line: str) -> set[str]:
    """What bash offers at the end of this line."""
    words = line.split(" ")
    script = (
        f"source {SHIPPED}/tidegate.bash\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _tidegate 2>/dev/null\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def fish(line: str) -> set[str]:
    """What fish offers at the end of this line."""
    needs("fish")
    script = f"source {SHIPPED}/tidegate.fish; complete -C {line!r}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return {offer.split("\t")[0] for offer in done.stdout.splitlines()}


def zsh(line: str) -> set[str]:
    """What zsh offers at the end of this line, in a terminal of its own."""
    needs("zsh")
    # Completion runs only in the line editor, so one is driven through zpty; compadd tells what
    # it was handed instead of showing it.
    setup = (
        f"fpath=({SHIPPED} $fpath); autoload -Uz compinit; compinit -D -u\n"
        "compadd() {\n"
        '  local -a kept; builtin compadd -O kept "$@" 2>/dev/null\n'
        "  print -rl -- 'OFFER:'$^kept\n"
        '  builtin compadd "$@"\n'
        "}\n"
        "finish() { print -r -- 'END OF OFFERS' }\n"
        "comppostfuncs=(finish); zstyle ':completion:*' list-prompt ''\n"
        "bindkey '^I' complete-word; LISTMAX=0; PS1=''; print 'SET UP'\n"
    )
    driver = (
        "zmodload zsh/zpty; zpty shell zsh -f -i\n"
        'zpty -w shell "$1"\nzpty -r -m shell said "*SET UP*SET UP*"\n'
        "zpty -w -n shell \"$2\"$'\\t'\n"
        'zpty -r -m shell said "*END OF OFFERS*"\nprint -r -- "$said"\nzpty -d shell\n'
    )
    done = subprocess.run(
        ["zsh", "-f", "-c", driver, "zsh", setup, line],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "TERM": "dumb"},
    )
    return set(re.findall(r"OFFER:(\S+)", done.stdout))


@pytest.fixture(params=[bash, fish, zsh], ids=["bash", "fish", "zsh"])
def complete(request: pytest.FixtureRequest) -> Complete:
    """Completion by each of the shells."""
    offered: Complete = request.param
    return offered


def test_verbs_are_offered(complete: Complete) -> None:
    """At first the verbs are offered, and those that begin with what stands there."""
    verbs = {verb.name for verb in read(command_line()).verbs}
    assert verbs <= complete("tidegate ")
    assert {"recycle", "reload", "restart", "replay"} <= complete("tidegate re")
    assert "run" not in complete("tidegate re")


def test_verbs_below_a_verb_are_offered(complete: Complete) -> None:
    """After a verb that has verbs of its own, those are offered and no others."""
    offered = complete("tidegate token ")
    assert {"new", "list", "revoke"} <= offered
    assert "status" not in offered


def test_flags_of_the_verb_are_offered(complete: Complete) -> None:
    """After a verb and a dash its own flags are offered."""
    offered = complete("tidegate recycle --")
    assert {"--no-wait", "--config"} <= offered
    assert "--json" not in offered
    assert "--json" in complete("tidegate token list --")


def test_value_of_a_flag_is_no_verb(complete: Complete) -> None:
    """A word that is a flag's value does not count as a verb."""
    assert "--no-wait" in complete("tidegate recycle --state-dir token --no")


def test_choices_are_offered(complete: Complete) -> None:
    """Where one of several words must follow, those are offered."""
    assert {"bash", "zsh", "fish"} <= complete("tidegate completion ")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_is_good_syntax(shell: str) -> None:
    """The shell itself finds no fault in the script."""
    needs(shell)
    script = SHIPPED / SCRIPTS[shell]
    subprocess.run([shell, "-n", str(script)], check=True)


def test_scripts_are_built_for_every_shell() -> None:
    """Each shell that the verb knows has a script here."""
    assert set(SHELLS) == set(SCRIPTS)


def test_manual_page_renders_without_a_warning() -> None:
    """man finds no fault in the page, and shows every verb."""
    needs("man")
    done = subprocess.run(
        ["man", "--warnings", "-l", str(SHIPPED / "tidegate.1")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
    )
    assert done.stderr == ""
    for verb in read(command_line()).walk():
        if verb.path and not verb.verbs:
            assert " ".join(verb.path) in done.stdout
