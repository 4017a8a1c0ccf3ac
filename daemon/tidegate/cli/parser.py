"""The grammar of the command: its verbs and their flags."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from tidegate import __version__
from tidegate.cli.failure import USAGE
from tidegate.core import scopes
from tidegate.core.records.usage import GROUPS
from tidegate.core.text import visible


class _Formatter(argparse.HelpFormatter):
    """Makes help as wide as the terminal, without the shutil that argparse would take for it.

    That brings bz2 and lzma along, and what reads the command line may become the watchdog.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    if (said := os.environ.get("COLUMNS", "")).isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size().columns or 80
    except OSError:  # the output is no terminal
        return 80


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **options})

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        text = visible(_explained(message), keep="\n")
        self.exit(USAGE, f"{self.prog}: {text}\n")


def _explained(message: str) -> str:
    """Say what a mistyped word may have been before its choices, where argparse names them."""
    found = re.fullmatch(
        r"argument (.+?): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL
    )
    if found is None:
        return message

    import difflib
    import textwrap

    name, typed, listed = found.groups()
    choices = re.findall(r"[\w-]+", listed)
    near = difflib.get_close_matches(typed, choices, n=1)
    meant = f"; did you mean `{near[0]}`?" if near else ""
    text = textwrap.fill(
        f"choose from {', '.join(choices)}", _columns() - 2, break_on_hyphens=False
    )
    return f"{name} '{typed}' is not known{meant}\n{textwrap.indent(text, '  ')}"


def command_line() -> argparse.ArgumentParser:
    """Make the parser of the whole command."""
    parser = _Parser(prog="tidegate", description="An LLM streaming gateway for home servers.")
    parser.add_argument("--version", action="version", version=f"tidegate {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, text: str, *, json: bool = False) -> argparse.ArgumentParser:
        return _add(verbs, name, text, json=json)

    run = verb("run", "serve in the foreground; what service managers start")
    run.add_argument("--log-file", type=Path, metavar="FILE", help="log there, not to stderr")
    run.add_argument(
        "--park",
        action="store_true",
        help="on a bad config stay up, say why on every route, and serve once it is fixed",
    )
    verb("start", "serve in the background, on a machine without a service manager")
    verb("stop", "finish the answers in flight and stop")
    verb("restart", "stop, then start in the background")
    status = verb("status", "how it is, in one sentence, and what is wrong", json=True)
    status.add_argument(
        "-v", "--verbose", action="store_true", help="all: workers, memory, runs, what was swept"
    )
    runs = verb("runs", "the answers that are held", json=True)
    runs.add_argument(
        "--all", action="store_true", help="also those that the journal or the history knows"
    )
    _add_wide(runs)
    top = verb("top", "how it is and what runs, drawn anew until Ctrl-C", json=True)
    top.add_argument("--once", action="store_true", help="draw once, and end")
    _add_usage(verb("usage", "who used how many tokens, of what, in which time", json=True))
    forget = verb("forget", "remove an answer, and that it was, from memory and disk", json=True)
    forget.add_argument(
        "which", nargs="?", metavar="RUN", help="its id, as `runs` shows it, or its beginning"
    )
    forget.add_argument("--all", action="store_true", help="all that are over")
    forget.add_argument("--yes", action="store_true", help="do not ask whether it is meant")
    _add_wide(verb("models", "the upstreams, what they have, and what is loaded", json=True))
    sweep = verb("sweep", "release what is stale now", json=True)
    sweep.add_argument(
        "--finished", action="store_true", help="also answers that are only kept for resuming"
    )
    recycle = verb("recycle", "replace the worker; no stream is cut")
    recycle.add_argument(
        "--no-wait", action="store_true", help="return when the new worker is ready"
    )
    upgrade = verb("upgrade", "become the version that is installed now; no stream is cut")
    upgrade.add_argument(
        "--no-wait", action="store_true", help="return when the new worker is ready"
    )
    verb("reload", "read the config and the tokens again, and say what changed", json=True)
    _add_log_flags(verb("logs", "the log, wherever it is kept", json=True))
    verb("check", "say whether the config file is good", json=True)
    doctor = verb("doctor", "what is wrong with this computer, and how to fix it", json=True)
    doctor.add_argument(
        "--no-tokens", action="store_true", help="do not ask upstreams for a few tokens"
    )
    bundle = verb("bundle", "write down how it is, as evidence", json=True)
    bundle.add_argument(
        "--output", type=Path, metavar="FILE", help="copy it there, for you alone to read"
    )
    replay = verb("replay", "make the memory guard's decisions again and compare", json=True)
    replay.add_argument("file", type=Path, metavar="FILE", help="a bundle, or decisions.jsonl")
    _add_token(verbs)
    _add_notify(verbs)
    _add_service(verbs)
    completion = verbs.add_parser(
        "completion",
        help="what a shell needs to complete this command",
        description="Print what a shell needs to complete this command.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL")
    verb("version", "versions of tidegate and what it runs on", json=True)
    text = "this list, or all about one verb"
    helping = verbs.add_parser("help", help=text, description=f"{text[0].upper()}{text[1:]}.")
    helping.add_argument("about", nargs="?", choices=list(verbs.choices), metavar="VERB")
    return parser


def _add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `cli.verbs.logs.read_arguments` reads, with `--json`."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    parser.add_argument("-n", "--lines", metavar="N", help='the last N lines, or "all"; else 50')
    parser.add_argument(
        "--since", metavar="WHEN", help="30min, 2h, 3d, 06:00, 2026-11-22 or 2026-11-22T06:00"
    )


def _add_wide(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-w", "--wide", action="store_true", help="every column and name whole, however long"
    )


def _add_usage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by",
        choices=GROUPS,
        default=GROUPS[0],
        metavar="WHAT",
        help=f"one of {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--since", default="7d", metavar="WHEN", help="30min, 2h, 7d, 2026-11-22; else 7d"
    )
    _add_wide(parser)


def _add_token(verbs: argparse._SubParsersAction[_Parser]) -> None:
    token = verbs.add_parser(
        "token",
        help="API tokens: make, list, revoke",
        description="API tokens: make, list, revoke.",
    )
    inner = token.add_subparsers(dest="token_verb", metavar="VERB", required=True)
    new = _add(inner, "new", "make a token and print it, once")
    new.add_argument("name", metavar="NAME", help="whose it is, or for what")
    scope = new.add_mutually_exclusive_group()
    scope.add_argument(
        "--scope",
        choices=list(scopes.MEANINGS),
        default=scopes.USE,
        help="what it is for: call models (what is assumed), only see figures, or manage all",
    )
    scope.add_argument(
        "--read",
        action="store_const",
        dest="scope",
        const=scopes.READ,
        help="the same as --scope read: for Prometheus, a dashboard or a phone",
    )
    _add(inner, "list", "the names of the tokens", json=True)
    revoke = _add(inner, "revoke", "revoke a token")
    revoke.add_argument("which", metavar="NAME", help="its name, or how its SHA-256 begins")


def _add_notify(verbs: argparse._SubParsersAction[_Parser]) -> None:
    text = "the receivers of what tidegate tells: try them"
    notify = verbs.add_parser("notify", help=text, description=f"{text[0].upper()}{text[1:]}.")
    inner = notify.add_subparsers(dest="notify_verb", metavar="VERB", required=True)
    test = _add(inner, "test", "send a test, and show what they answer", json=True)
    test.add_argument("--to", metavar="NAME", help="to that receiver alone")


def _add_service(verbs: argparse._SubParsersAction[_Parser]) -> None:
    text = "as a service of systemd or launchd"
    service = verbs.add_parser("service", help=text, description=f"tidegate {text}.")
    inner = service.add_subparsers(dest="service_verb", metavar="VERB", required=True)
    install = _add(inner, "install", "start it with the computer, and now; shows what it writes")
    install.add_argument("--dry-run", action="store_true", help="only show what would be written")
    install.add_argument("--no-start", action="store_true", help="do not start it now")
    install.add_argument(
        "--socket", action="store_true", help="the service manager opens the addresses of listen"
    )
    _add(inner, "uninstall", "stop it and remove what install wrote; config and state stay")
    _add(inner, "start", "start it and wait until it serves")
    _add(inner, "stop", "finish the answers in flight and stop")
    _add(inner, "restart", "stop it, start it and wait until it serves")
    _add(inner, "status", "what the service manager and tidegate itself say", json=True)
    _add_log_flags(_add(inner, "logs", "its log", json=True))
    for parser in inner.choices.values():
        scope = parser.add_mutually_exclusive_group()
        scope.add_argument("--system", action="store_true", help="of the system; root's default")
        scope.add_argument("--user", action="store_true", help="of this user")


def _add(
    verbs: argparse._SubParsersAction[_Parser], name: str, text: str, *, json: bool = False
) -> argparse.ArgumentParser:
    """Add a verb with the three flags for places that every verb takes."""
    parser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the config file")
    parser.add_argument("--state-dir", type=Path, metavar="DIR", help="for tokens and logs")
    parser.add_argument("--runtime-dir", type=Path, metavar="DIR", help="for sockets and the pid")
    if json:
        parser.add_argument("--json", action="store_true", help="for programs")
    return parser
