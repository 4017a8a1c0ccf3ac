"""The scripts by which bash, zsh and fish complete the command; `tidegate completion` prints them.

The scripts are whole: they ask tidegate nothing when a key is pressed, and need nothing but the
shell. A word counts as a verb where the words before it lead there, so that the `start` of
`tidegate start` and another verb's `start` are told apart, and the value of a flag is no verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from shell.grammar import Flag, Verb, WordKind


def _taking(command: Verb, *kinds: WordKind) -> list[str]:
    """Return the names of all flags that are followed by a word of these kinds."""
    flags = [flag for verb in command.walk() for flag in verb.flags if flag.kind in kinds]
    return sorted({name for flag in flags for name in flag.names})


def _choices(command: Verb) -> dict[str, str]:
    """Return what may follow each flag that has choices, its words joined by spaces."""
    flags = [flag for verb in command.walk() for flag in verb.flags if flag.choices]
    return {name: " ".join(flag.choices) for flag in flags for name in flag.names}


_ANY_VALUE = (WordKind.FILE, WordKind.DIRECTORY, WordKind.CHOICE, WordKind.TEXT)


# --- bash ----------------------------------------------------------------------------------------


def bash(command: Verb) -> str:
    """Write the script for bash, also macOS's old one, with or without bash-completion."""
    paths = [" ".join(verb.path) for verb in command.walk() if verb.path]
    lines = [
        "# bash completion for tidegate, as `tidegate completion bash` writes it.",
        "_tidegate() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}",
        '    local path="" words="" files="" word i',
        "    # bash makes three words of --flag=value.",
        '    if [ "$prev" = "=" ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi',
        '    if [ "$cur" = "=" ]; then cur=""; fi',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        "        word=${COMP_WORDS[i]}",
        '        case "$word" in',
        f"            {'|'.join(_taking(command, *_ANY_VALUE))})",
        '                if [ "${COMP_WORDS[i+1]}" = "=" ]; then i=$((i + 1)); fi',
        "                i=$((i + 1))",
        "                continue ;;",
        "        esac",
        '        case "${path:+$path }$word" in',
        f"            {'|'.join(map(_quoted, paths))})",
        '                path="${path:+$path }$word" ;;',
        "        esac",
        "    done",
        '    case "$prev" in',
        *_bash_values(command),
        "        *)",
        '            case "$path" in',
        *(line for verb in command.walk() for line in _bash_verb(verb)),
        "            esac ;;",
        "    esac",
        "    COMPREPLY=()",
        '    if [ -n "$words" ]; then',
        "        # shellcheck disable=SC2207  # the words have no spaces, and 3.2 has no mapfile",
        '        COMPREPLY=($(compgen -W "$words" -- "$cur"))',
        "    fi",
        '    if [ -n "$files" ] && [ ${#COMPREPLY[@]} -eq 0 ]; then',
        "        # shellcheck disable=SC2207",
        '        compopt -o "$files" 2>/dev/null || COMPREPLY=($(compgen -f -- "$cur"))',
        "    fi",
        "}",
        "complete -F _tidegate tidegate",
    ]
    return "\n".join(lines) + "\n"


def _bash_values(command: Verb) -> list[str]:
    rows = [
        (_taking(command, WordKind.FILE), "files=default"),
        (_taking(command, WordKind.DIRECTORY), "files=dirnames"),
        *(([name], f'words="{words}"') for name, words in _choices(command).items()),
        (_taking(command, WordKind.TEXT), ":"),
    ]
    return [f"        {'|'.join(names)}) {what} ;;" for names, what in rows if names]


def _bash_verb(verb: Verb) -> list[str]:
    words = [inner.name for inner in verb.verbs]
    words += [choice for argument in verb.arguments for choice in argument.choices]
    flags = [name for flag in verb.flags for name in flag.names]
    files = [a for a in verb.arguments if a.kind in (WordKind.FILE, WordKind.DIRECTORY)]
    path = " ".join(verb.path)
    lines = [f'                "{path}")', f'                    words="{" ".join(words)}"']
    # Flags are offered once a dash asks for them; where nothing else fits, at once.
    condition = 'case "$cur" in -*) ' if words or files else ""
    offered = f'words="{" ".join(flags)}"'
    if files:
        lines.append("                    files=default")
    lines.append(f"                    {condition}{offered}{' ;; esac' if condition else ''} ;;")
    return lines


def _quoted(text: str) -> str:
    return f'"{text}"'


# --- zsh -----------------------------------------------------------------------------------------


def zsh(command: Verb) -> str:
    """Write the script for zsh, by `_arguments`; the file's name is `_tidegate`."""
    lines = ["#compdef tidegate", "# zsh completion, as `tidegate completion zsh` writes it."]
    for verb in command.walk():
        lines += ["", *_zsh_function(verb)]
    # Read by `compinit` it is the function; read by `source` it has to announce itself.
    lines += [
        "",
        'if [ "$funcstack[1]" = "_tidegate" ]; then',
        '  _tidegate "$@"',
        "else",
        "  compdef _tidegate tidegate",
        "fi",
    ]
    return "\n".join(lines) + "\n"


def _zsh_function(verb: Verb) -> list[str]:
    specs = [_zsh_flag(flag) for flag in verb.flags]
    lines = [f"{_zsh_name(verb)}() {{"]
    if not verb.verbs:
        specs += [_zsh_argument(argument) for argument in verb.arguments]
        return [*lines, *_continued("  _arguments", specs), "}"]
    specs += ["'1: :->verb'", "'*:: :->rest'"]
    lines += [
        "  local curcontext=$curcontext state line",
        "  local -A opt_args",
        "  local -a verbs",
    ]
    lines += _continued("  _arguments -C", specs)
    lines += ["  case $state in", "    verb)", "      verbs=("]
    lines += [f"        {_single(_colon(v.name) + ':' + _first(v.help))}" for v in verb.verbs]
    lines += ["      )", "      _describe verb verbs ;;", "    rest)", "      case $words[1] in"]
    lines += [f"        {inner.name}) {_zsh_name(inner)} ;;" for inner in verb.verbs]
    return [*lines, "      esac ;;", "  esac", "}"]


def _zsh_name(verb: Verb) -> str:
    return "_".join(("_tidegate", *verb.path))


def _zsh_flag(flag: Flag) -> str:
    others = f"({' '.join(flag.names)})" if len(flag.names) > 1 else ""
    names = f"{{{','.join(flag.names)}}}" if len(flag.names) > 1 else flag.names[0]
    rest = _single(f"[{_bracket(flag.help)}]{_zsh_value(flag)}")
    return f"{_single(others) if others else ''}{names}{rest}"


def _zsh_argument(argument: Flag) -> str:
    place = "*" if argument.repeats else ""
    return _single(f"{place}{_zsh_value(argument)}" or ":")


def _zsh_value(flag: Flag) -> str:
    actions = {
        WordKind.FILE: "_files",
        WordKind.DIRECTORY: "_files -/",
        WordKind.CHOICE: f"({' '.join(flag.choices)})",
        WordKind.TEXT: " ",
    }
    return f":{_colon(flag.metavar)}:{actions[flag.kind]}" if flag.kind in actions else ""


def _continued(head: str, words: Iterable[str]) -> list[str]:
    lines = [head, *(f"    {word}" for word in words)]
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def _colon(text: str) -> str:
    return text.replace(":", "\\:")


def _bracket(text: str) -> str:
    return text.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


# --- fish ----------------------------------------------------------------------------------------


def fish(command: Verb) -> str:
    """Write the script for fish."""
    paths = [" ".join(verb.path) for verb in command.walk() if verb.path]
    lines = [
        "# fish completion for tidegate, as `tidegate completion fish` writes it.",
        "function __tidegate_at --description 'Whether the words so far lead to this verb'",
        "    set -l path",
        "    set -l is_value 0",
        "    for word in (commandline -opc)[2..-1]",
        "        if test $is_value = 1",
        "            set is_value 0",
        "            continue",
        "        end",
        f"        if contains -- $word {' '.join(_taking(command, *_ANY_VALUE))}",
        "            set is_value 1",
        "            continue",
        "        end",
        f"        if contains -- (string join ' ' $path $word) {' '.join(map(_single, paths))}",
        "            set -a path $word",
        "        end",
        "    end",
        "    set -l joined (string join ' ' $path)",
        '    test "$joined" = "$argv"',
        "end",
        "",
        "complete -c tidegate -f",
    ]
    for verb in command.walk():
        here = f"complete -c tidegate -n {_single(' '.join(('__tidegate_at', *verb.path)))}"
        lines += [f"{here} -a {v.name} -d {_fish(_first(v.help))}" for v in verb.verbs]
        lines += [f"{here} {_fish_flag(flag)}" for flag in verb.flags]
        for argument in verb.arguments:
            if argument.choices:
                lines.append(f"{here} -a {_single(' '.join(argument.choices))}")
            elif argument.kind in (WordKind.FILE, WordKind.DIRECTORY):
                lines.append(f"{here} -F")
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names)
    values = {
        WordKind.FILE: " -r -F",
        WordKind.DIRECTORY: " -x -a '(__fish_complete_directories)'",
        WordKind.CHOICE: f" -x -a {_single(' '.join(flag.choices))}",
        WordKind.TEXT: " -x",
    }
    return f"{names}{values.get(flag.kind, '')} -d {_fish(flag.help)}"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# --- all of them ---------------------------------------------------------------------------------


def _single(text: str) -> str:
    """Quote a text as one word for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _first(text: str) -> str:
    """Return the first sentence of a text, as a list shows it."""
    return text.split(". ", 1)[0].rstrip(".")


SHELLS: dict[str, Callable[[Verb], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
