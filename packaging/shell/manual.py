"""The manual page, tidegate(1), written from the command line that there is."""

from __future__ import annotations

import textwrap

from shell.grammar import Flag, Verb

_DESCRIPTION = """\
tidegate stands between the clients of language models and the servers that run them. Every answer \
that is being streamed is a run, bounded and resumable, and a watchdog judges the memory of the \
process that serves from outside.

Without a config file it looks for Ollama, llama.cpp, LM Studio and vLLM on this computer, and has \
a built-in model called demo. It listens on 127.0.0.1, port 8433."""

_STATUS = {
    "0": "Done; for run: stopped as asked.",
    "1": "The running tidegate refused, or replay or doctor found something.",
    "2": "The doctor found errors.",
    "64": "Wrong usage.",
    "69": "No running tidegate can be reached, or start failed.",
    "70": "A defect of tidegate itself, see its log.",
    "74": "What it would print cannot be written.",
    "75": "Not finished yet, or try again.",
    "78": "Bad configuration.",
}
_ENVIRONMENT = {
    "TIDEGATE_CONFIG": "The config file.",
    "TIDEGATE_STATE_DIR": "The directory for tokens, evidence and logs.",
    "TIDEGATE_RUNTIME_DIR": "The directory for sockets and the process id.",
    "TIDEGATE_LISTEN": "Addresses, separated by commas, instead of those of the config.",
}
_FILES = {
    "/etc/tidegate/config.toml": "The config of the system's service.",
    "/etc/tidegate/credentials": "Keys of upstreams, a file each: api_key_file names one.",
    "/var/lib/tidegate": "Its tokens, evidence and the history of what was used.",
    "/run/tidegate": "Its sockets, and the journal of its answers, which goes with a reboot.",
    "~/.config/tidegate/config.toml": "The config of a user's own.",
    "~/.local/state/tidegate": "Its tokens, evidence, history and log.",
    "/Library/Application Support/tidegate": "On a Mac: the config, state and run of the system's.",
    "~/Library/Application Support/tidegate": "On a Mac: all of a user's own.",
}
_EXAMPLES = {
    "tidegate run": "Serve in the foreground.",
    "tidegate check": "Say what is wrong with the config, before it is used.",
    "sudo tidegate status": "How the system's service is.",
    "tidegate token new laptop": "Make a token for a client.",
    "tidegate usage --by model --since 30d": "What was asked for in a month, and how much of it.",
}

_MOST_CHOICES = 8  # that fit on a line; of more the page has a list of their own


def manual(command: Verb) -> str:
    """Write the page, for man(1)."""
    lines = [
        '.\\" Written from the command line; see packaging/shell/manual.py.',
        ".TH TIDEGATE 1",
        ".SH NAME",
        "tidegate \\- LLM streaming gateway that stays up for months",
        ".SH SYNOPSIS",
        ".B tidegate",
        ".I VERB",
        ".RI [ OPTION ...]",
        ".SH DESCRIPTION",
        *_paragraphs(_DESCRIPTION),
        ".SH VERBS",
        "Every verb takes",
        ".BR \\-\\-help .",
    ]
    shared = _shared(command)
    for verb in command.walk():
        if verb.path and not verb.verbs:
            lines += _verb(verb, shared)
    lines += [".SH OPTIONS", "Where they apply, and after the verb:"]
    for flag in shared:
        lines += _flag(flag)
    lines += _table("EXIT STATUS", _STATUS)
    lines += _table("ENVIRONMENT", _ENVIRONMENT)
    lines += _table("FILES", _FILES)
    lines += _table("EXAMPLES", _EXAMPLES)
    lines += [".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1),", ".BR curl (1)"]
    return "\n".join(lines) + "\n"


def _shared(command: Verb) -> tuple[Flag, ...]:
    """Return the flags that more than a third of the verbs take: the page lists them once."""
    leaves = [verb for verb in command.walk() if verb.path and not verb.verbs]
    flags = {flag.names: flag for verb in leaves for flag in verb.flags}
    often = len(leaves) / 3
    return tuple(
        flag
        for names, flag in flags.items()
        if "--help" not in names
        and sum(any(each == flag for each in verb.flags) for verb in leaves) > often
    )


def _verb(verb: Verb, shared: tuple[Flag, ...]) -> list[str]:
    own = [f for f in verb.flags if f not in shared and "--help" not in f.names]
    words = [f"\\fB{_text(' '.join(verb.path))}\\fR"]
    words += [_usage(argument) for argument in verb.arguments]
    lines = [".TP", " ".join(words), *_paragraphs(verb.help)]
    described = [*own, *(a for a in verb.arguments if a.help)]
    if described:
        lines.append(".RS")
        for flag in described:
            lines += _flag(flag)
        lines.append(".RE")
    return lines


def _usage(argument: Flag) -> str:
    name = f"\\fI{_text(argument.metavar)}\\fR"
    if 0 < len(argument.choices) <= _MOST_CHOICES:
        name = "|".join(f"\\fB{_text(choice)}\\fR" for choice in argument.choices)
    repeated = f"{name}..." if argument.repeats else name
    return repeated if argument.required else f"[{repeated}]"


def _flag(flag: Flag) -> list[str]:
    names = ", ".join(f"\\fB{_text(name)}\\fR" for name in flag.names) or _usage(flag)
    value = f" \\fI{_text(flag.metavar)}\\fR" if flag.names and flag.metavar else ""
    text = flag.help[:1].upper() + flag.help[1:].rstrip(".") + "."
    return [".TP", f"{names}{value}", *_paragraphs(text)]


def _table(title: str, rows: dict[str, str]) -> list[str]:
    lines = [f".SH {title}"]
    for name, text in rows.items():
        lines += [".TP", f"\\fB{_text(name)}\\fR", *_paragraphs(text)]
    return lines


def _paragraphs(text: str) -> list[str]:
    """Wrap running text; a paragraph begins after an empty line."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        lines += [".PP"] if lines else []
        lines += textwrap.wrap(_text(paragraph), 90, break_on_hyphens=False)
    return lines


def _text(text: str) -> str:
    """Escape a text, so that it is no macro to the formatter and keeps its dashes and tildes."""
    plain = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("~", "\\(ti").replace("^", "\\(ha")
    )
    plain = plain.replace("`", "\\(ga").replace("…", "...")
    return f"\\&{plain}" if plain[:1] in (".", "'") else plain
