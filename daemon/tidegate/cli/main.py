"""The `tidegate` command: what it calls for each verb, and the exit codes.

A verb imports what it needs when it is called. `tidegate run` becomes the watchdog, which stays
in memory for months: nothing that only prints tables may be loaded into it.

Exit codes: 0 done, or stopped as asked · 1 the running tidegate refused, `replay` found a
difference, or `doctor` warnings · 2 `doctor` found errors · 64 wrong usage · 69 cannot reach a
running tidegate · 74 its output cannot be written · 75 not finished yet, or restart me · 78 bad
configuration.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from tidegate.cli.failure import BAD_CONFIG, OUTPUT_FAILED, USAGE, CliError
from tidegate.cli.parser import command_line
from tidegate.cli.show.printable import say_lines
from tidegate.config import ConfigError
from tidegate.config.places import PlacesError
from tidegate.config.tokens import TokenError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    _have_standard_streams()
    try:
        arguments = command_line().parse_args(argv)
        if arguments.verb in {None, "help"}:
            about = [arguments.about] if arguments.verb and arguments.about else []
            command_line().parse_args([*about, "--help"])
    except SystemExit as stop:  # argparse has printed the help, the version or what is wrong
        return int(stop.code or 0)
    try:
        code = _call(arguments)
        sys.stdout.flush()
        return code
    except CliError as failure:
        return _complain(str(failure), failure.code)
    except (ConfigError, PlacesError) as error:
        return _complain(str(error), BAD_CONFIG)
    except TokenError as error:
        return _complain(str(error), USAGE)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `tidegate runs | head` is no error; nothing more may be written at interpreter exit.
        _write_no_more()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _write_no_more()
        return _complain(f"cannot be printed: {error.strerror}", OUTPUT_FAILED)


def _have_standard_streams() -> None:
    """Open /dev/null in place of descriptor 0, 1 or 2 where that was closed (`2>&-`).

    Else the next socket that is opened would get the number, and what is meant for a terminal or
    the log would go to the program at its other end.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)
            os.set_inheritable(fd, True)  # for workers, and for a new program in our place
        if getattr(sys, name) is None:  # which is what Python makes of a closed one
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115


def _write_no_more() -> None:
    """Lead stdout to /dev/null: Python would write what is left at its exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _call(arguments: argparse.Namespace) -> int:
    match arguments.verb:
        case "run":
            from tidegate.cli.verbs.run import run

            return run(arguments)
        case "start" | "stop" | "restart":
            from tidegate.cli.verbs import detached

            return detached.VERBS[arguments.verb](arguments)
        case "token":
            from tidegate.cli.verbs import token

            return token.VERBS[arguments.token_verb](arguments)
        case "notify":
            from tidegate.cli.verbs.notify import notify

            return notify(arguments)
        case "reload":
            from tidegate.cli.verbs.reload import reload

            return reload(arguments)
        case "check":
            from tidegate.cli.verbs.check import check

            return check(arguments)
        case "bundle":
            from tidegate.cli.verbs.bundle import bundle

            return bundle(arguments)
        case "replay":
            from tidegate.cli.verbs.replay import replay

            return replay(arguments)
        case "completion":
            from tidegate.cli.shell.completion import completion

            return completion(arguments)
        case "service":
            from tidegate.cli.service.verbs import run as service

            return service(arguments)
        case "top":
            from tidegate.cli.verbs.top import top

            return top(arguments)
        case "usage":
            from tidegate.cli.verbs.usage import usage

            return usage(arguments)
        case "forget":
            from tidegate.cli.verbs.forget import forget

            return forget(arguments)
        case "logs":
            from tidegate.cli.verbs.logs import logs

            return logs(arguments)
        case "doctor":
            from tidegate.cli.verbs.doctor import doctor

            return doctor(arguments)
        case "version":
            from tidegate.cli.verbs.version import version

            return version(arguments)
        case _:
            from tidegate.cli.verbs import ask

            return ask.VERBS[arguments.verb](arguments)


def _complain(text: str, code: int) -> int:
    say_lines(f"tidegate: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
