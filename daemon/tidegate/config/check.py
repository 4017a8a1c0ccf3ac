"""What must hold beyond types: the grammar of addresses and names, and how the parts fit.

Each function looks at finished `Settings` and returns problems; nothing here reads a file.
Upstream URLs are not repeated in a problem's text, because people paste keys into them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from tidegate.config.mistake import MAX_PROBLEMS, Mistake
from tidegate.config.places import MAX_SOCKET_PATH_BYTES
from tidegate.config.receivers import find_receiver_problems
from tidegate.core.http.header import MAX_HEADERS, MAX_VALUE_BYTES, is_value, name_problem
from tidegate.core.http.host import is_own_listener, parse_pattern
from tidegate.core.http.origin import parse_origin
from tidegate.core.http.url import Url, parse_url
from tidegate.core.memory.levels import (
    LEAST_BUDGET_BYTES,
    journal_limit_bytes,
    usual_ledger_limit_bytes,
)
from tidegate.core.runs.intake import largest_body_bytes
from tidegate.core.settings import (
    API_KEY_HEADERS,
    JOURNAL_PLACES,
    KEPT_OF_ANSWERS,
    MIB,
    Growth,
    Journal,
    LimitOverrides,
    Settings,
    Upstream,
)
from tidegate.machine.mounts import is_in_memory

_PORT = r"(?P<port>[0-9]{1,5})"
_NAME_OR_V4 = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?"
_V6 = r"\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]"
_LISTEN = re.compile(rf"(?:(?P<name>{_NAME_OR_V4})|{_V6}):{_PORT}")
_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_LISTEN = 32  # each is a socket, and each upstream is compared with each of them
MAX_GUESSED = 100  # names that a mistyped one is compared with
LEAST_AGE_S = 3600.0  # of a worker that is replaced for its age; below it, a warning
_MODEL_NAME = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")


def find_problems(settings: Settings) -> list[Mistake]:
    """List everything that is wrong with the settings by themselves."""
    return [
        *_listen(settings),
        *_allowed(settings),
        *_memory(settings),
        *_journal(settings),
        *_auth(settings),
        *find_receiver_problems(settings),
        *_upstreams(settings),
        *_models(settings),
    ]


def find_exposed_addresses(settings: Settings) -> list[Mistake]:
    """List the addresses that other computers can reach, for a tidegate without a token."""
    if settings.auth.allow_without_token:
        return []
    return [
        Mistake(
            "listen",
            f"{address} can be reached by others and there is no token: make one with "
            "`tidegate token new NAME`, or set auth.allow_without_token = true",
        )
        for address in reached_by_others(settings.listen)
    ]


def reached_by_others(addresses: Iterable[str]) -> list[str]:
    """List those addresses of `listen` that other computers can reach."""
    return [address for address in addresses if not is_own_listener(address)]


def without_consequences(found: list[Mistake], mistakes: list[Mistake]) -> list[Mistake]:
    """Return `found` without what may only follow from the `mistakes` in types and keys.

    Those stand at their defaults by now, and what is said of a default would mislead.
    """
    keys = tuple({mistake.key for mistake in mistakes})
    # A target may name an upstream whose own name could not be read, or whose `[[upstreams]]`.
    unread = any(re.fullmatch(r"up[^.\[]*(\[\d+\]\.name)?", key) for key in keys)
    is_auth = any(key.startswith("auth") for key in keys)
    above = set(keys)

    def may_follow(key: str) -> bool:
        if (key == "listen" and is_auth) or (key.endswith(".targets") and unread):
            return True
        return any(key[:end] in above for end in range(1, len(key) + 1))

    return [problem for problem in found if not may_follow(problem.key)]


def find_warnings(settings: Settings) -> list[str]:
    """List what works, but perhaps not as the owner thinks."""
    found = []
    if 0 < settings.memory.recycle_after_s < LEAST_AGE_S:
        found.append(
            f"memory.recycle_after_s: a new worker every {settings.memory.recycle_after_s:g} s "
            "costs more than it saves; a day or more is usual, 0 is never"
        )
    if settings.memory.growth != Growth():
        found.append(
            "memory.growth: the periods are not the usual ones; short ones take warming up for a "
            "leak and recycle for nothing"
        )
    found += _little_memory(settings)
    longest_s = max(total_s + grace_s for total_s, grace_s in _run_limits(settings))
    if settings.drain.recycle_limit_s < longest_s:
        found.append(
            f"drain.recycle_limit_s: {settings.drain.recycle_limit_s:g} s is less than the longest "
            f"run may take ({longest_s:g} s with its grace): a recycle can cut answers"
        )
    return found


def find_place_warnings(settings: Settings, runtime_dir: Path) -> list[str]:
    """List what is asked of the runtime directory and cannot be there."""
    journal = settings.journal
    if journal.keep == "off" or journal.place != "memory" or is_in_memory(runtime_dir):
        return []
    return [
        f"journal.place: the runtime directory {runtime_dir} is not in memory (tmpfs), so nothing "
        'is kept there; choose another with --runtime-dir, or set journal.place = "disk"'
    ]


def _little_memory(settings: Settings) -> Iterator[str]:
    """Warn of what a budget is too small for."""
    budget_bytes = settings.memory.budget_bytes
    if budget_bytes is None:
        return  # it is known when it runs, see `watchdog.repairs`
    if budget_bytes < LEAST_BUDGET_BYTES:
        yield (
            f"memory.budget: {budget_bytes // MIB}MiB counts as {LEAST_BUDGET_BYTES // MIB}MiB, "
            "the least with which readers are safe from each other; set at least that"
        )
    budget_bytes = max(budget_bytes, LEAST_BUDGET_BYTES)
    yield from _large_journal(settings.journal, budget_bytes)
    limit_bytes = usual_ledger_limit_bytes(budget_bytes)
    fits_bytes = largest_body_bytes(limit_bytes)
    if settings.limits.max_body_bytes > fits_bytes:
        yield (
            f"limits.max_body: of {settings.limits.max_body_bytes // MIB}MiB no more than about "
            f"{fits_bytes // MIB}MiB fits into this memory.budget; larger requests get 413"
        )


def _large_journal(journal: Journal, budget_bytes: int) -> Iterator[str]:
    most_bytes = journal_limit_bytes(budget_bytes)
    if (
        journal.place == "disk"
        or journal.max_bytes <= most_bytes
        or (
            journal.max_bytes == Journal().max_bytes  # which was not chosen
        )
    ):
        return
    yield (
        f"journal.max: in memory no more than {most_bytes // MIB}MiB of "
        f"{journal.max_bytes // MIB}MiB are used, a quarter of what this memory.budget leaves; "
        'raise that, or set journal.place = "disk"'
    )


def _run_limits(settings: Settings) -> Iterator[tuple[float, float]]:
    overrides = [u.limits for u in settings.upstreams] + [m.limits for m in settings.models]
    for override in (LimitOverrides(), *overrides):
        limits = override.over(settings.limits)
        yield limits.total_s, limits.grace_s


def _listen(settings: Settings) -> Iterator[Mistake]:
    if not settings.listen:
        yield Mistake("listen", 'is empty; the default is "127.0.0.1:8433"')
    if len(settings.listen) > MAX_LISTEN:
        yield Mistake("listen", f"has more than {MAX_LISTEN} addresses; 0.0.0.0 is all of a port")
        return
    for address in settings.listen:
        if text := _listen_problem(address):
            yield Mistake("listen", text)
    for _, address in _repeated(settings.listen):
        if not address.endswith(":0"):
            yield Mistake("listen", f"{address} is there twice")


def _listen_problem(address: str) -> str | None:
    if address.startswith("unix:"):
        return _unix_path_problem(address)
    match = _LISTEN.fullmatch(address)
    if match is None or not _is_host_and_port(match):
        return (
            f"{address[:80]!r} is not an address; write it like 127.0.0.1:8433, [::1]:8433, "
            "0.0.0.0:8433 or unix:/path"
        )
    if match["name"] and match["name"] != "localhost" and not _is_ip(socket.AF_INET, match["name"]):
        return f'{address[:80]!r} has no IP address; names are not looked up, except "localhost"'
    return None


def _unix_path_problem(address: str) -> str | None:
    path = address.removeprefix("unix:")
    if not path.startswith("/") or path.endswith("/") or not path.isprintable():
        return "unix: needs the absolute path of a socket, unix:/path"
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        return f"the path of a Unix socket may be {MAX_SOCKET_PATH_BYTES} bytes long, no more"
    return None


def _is_host_and_port(match: re.Match[str]) -> bool:
    """Tell whether the port and the IP address of a match are valid numbers."""
    if match["port"] and int(match["port"]) > 65535:
        return False
    if match["v6"]:
        return _is_ip(socket.AF_INET6, match["v6"])
    looks_like_v4 = re.fullmatch(r"[0-9.]+", match["name"]) is not None
    return not looks_like_v4 or _is_ip(socket.AF_INET, match["name"])


def _is_ip(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except OSError:
        return False
    return True


def _allowed(settings: Settings) -> Iterator[Mistake]:
    for key, parse in (("allowed_hosts", parse_pattern), ("allowed_origins", parse_origin)):
        for n, text in enumerate(getattr(settings, key)):
            try:
                parse(text)
            except ValueError as error:
                yield Mistake(f"{key}[{n}]", str(error))


def _memory(settings: Settings) -> Iterator[Mistake]:
    if settings.memory.mode not in ("enforce", "observe"):
        yield Mistake("memory.mode", 'must be "enforce" or "observe"')


def _journal(settings: Settings) -> Iterator[Mistake]:
    for name, value, known in (
        ("keep", settings.journal.keep, KEPT_OF_ANSWERS),
        ("place", settings.journal.place, JOURNAL_PLACES),
    ):
        if value not in known:
            names = [f'"{each}"' for each in known]
            yield Mistake(f"journal.{name}", f"must be {', '.join(names[:-1])} or {names[-1]}")


def _auth(settings: Settings) -> Iterator[Mistake]:
    name = settings.auth.tokens_file
    if not name or name.endswith("/") or not name.isprintable():
        yield Mistake("auth.tokens_file", "must be the name of a file")


def _upstreams(settings: Settings) -> Iterator[Mistake]:
    for n, upstream in enumerate(settings.upstreams):
        at = f"upstream[{n}]"
        if not _UPSTREAM_NAME.fullmatch(upstream.name):
            yield Mistake(
                f"{at}.name",
                "must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or "
                "digit; '/' divides it from a model's name",
            )
        if text := _url_problem(upstream.url) or _loop_problem(
            upstream.url, settings.listen[:MAX_LISTEN]
        ):
            yield Mistake(f"{at}.url", text)
        if upstream.api_key_env is not None and upstream.api_key_file is not None:
            yield Mistake(f"{at}.api_key_file", "is there beside api_key_env; keep one of them")
        if upstream.api_key_header not in (None, *API_KEY_HEADERS):
            # Not repeated: it may be the key itself, in the wrong place.
            yield Mistake(f"{at}.api_key_header", 'must be "authorization" or "x-api-key"')
        yield from _headers(upstream, f"{at}.headers")
        if upstream.ca_file is not None and not upstream.url.startswith("https:"):
            yield Mistake(f"{at}.ca_file", "is of use for an https:// url alone")
    for n, name in _repeated([upstream.name for upstream in settings.upstreams]):
        yield Mistake(f"upstream[{n}].name", f"another one is called {name!r} already")


def _headers(upstream: Upstream, at: str) -> Iterator[Mistake]:
    """Check the names and values of headers. Values are not repeated: people put keys there."""
    if len(upstream.headers) > MAX_HEADERS:
        yield Mistake(at, f"has more than {MAX_HEADERS} headers")
    for name, value in upstream.headers.items():
        if text := name_problem(name):
            yield Mistake(f"{at}.{name[:80]}", text)
        elif isinstance(value, str) and not is_value(value):
            yield Mistake(
                f"{at}.{name}",
                f"must be 1 to {MAX_VALUE_BYTES} printable ASCII characters, without spaces at "
                "its ends",
            )
    for _, name in _repeated([name.lower() for name in upstream.headers]):
        yield Mistake(f"{at}.{name[:80]}", "is there twice; upper and lower case are the same")


def _url_problem(text: str) -> str | None:
    try:
        socket_path = parse_url(text).socket_path
    except ValueError as error:
        return str(error)
    return _unix_path_problem(f"unix:{socket_path}") if socket_path else None


def _loop_problem(text: str, listen: list[str]) -> str | None:
    """Refuse an upstream that is tidegate itself: each request would come back to it, for ever."""
    where = parse_url(text)
    if address := next((each for each in listen if _leads_to(where, each)), None):
        return (
            f"is tidegate's own address (listen {address}), so each request would come back to it "
            "without end; write the address of the model server"
        )
    return None


def _leads_to(where: Url, address: str) -> bool:
    """Tell whether `where` leads to our `address`, as far as that is known without a connection."""
    if where.socket_path or address.startswith("unix:"):
        return f"unix:{where.socket_path}" == address
    host, _, port = address.rpartition(":")
    if port != str(where.port):
        return False
    ours, theirs = host.strip("[]"), where.host
    if _is_this_computer(theirs):
        return ours in ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)
    return any(_reaches(here, there) for there in _packed(ours) for here in _packed(theirs))


def _is_this_computer(name: str) -> bool:
    mine = socket.gethostname().lower()
    return name.lower() in (mine, f"{mine}.local", f"{mine.partition('.')[0]}.local")


def _packed(host: str) -> list[bytes]:
    """Return the addresses of a host; none of a name, which would have to be looked up."""
    if host.lower() == "localhost":
        return _packed("127.0.0.1") + _packed("::1")
    for family in (socket.AF_INET, socket.AF_INET6):
        if _is_ip(family, host):
            return [socket.inet_pton(family, host)]
    return []


def _reaches(theirs: bytes, ours: bytes) -> bool:
    """Tell whether a connection to `theirs` comes to a socket bound to `ours`."""
    if len(theirs) != len(ours):
        return False
    if not any(theirs):  # what connects to the wildcard arrives at loopback
        theirs = _packed("127.0.0.1" if len(theirs) == 4 else "::1")[0]
    return theirs == ours or (not any(ours) and _is_of_this_computer(theirs))


def _is_of_this_computer(packed: bytes) -> bool:
    """Tell whether one of our interfaces has that address: only those can be bound."""
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((socket.inet_ntop(family, packed), 0))
        except OSError:
            return False
    return True


def _models(settings: Settings) -> Iterator[Mistake]:
    names = {upstream.name for upstream in settings.upstreams}
    guesses = MAX_PROBLEMS  # what a target may have meant takes some time, and no more are told
    for n, model in enumerate(settings.models):
        at = f"model[{n}]"
        if not _MODEL_NAME.fullmatch(model.name):
            yield Mistake(f"{at}.name", "must be 1 to 200 printable ASCII characters")
        if model.name.partition("/")[0] in names and "/" in model.name:
            yield Mistake(f"{at}.name", f"{model.name!r} would hide a model of that upstream")
        if not model.targets:
            yield Mistake(f"{at}.targets", 'is empty; name at least one "upstream/model"')
        if [] in model.targets:
            yield Mistake(
                f"{at}.targets",
                "has an empty list in it; a list there holds targets that are equal",
            )
        for target in model.all_targets:
            if text := _target_problem(target, names, guess=guesses > 0):
                guesses -= 1
                yield Mistake(f"{at}.targets", text)
        for _, target in _repeated(model.all_targets):
            yield Mistake(f"{at}.targets", f"{target!r} is there twice")
    for n, name in _repeated([model.name for model in settings.models]):
        yield Mistake(f"model[{n}].name", f"another one is called {name!r} already")


def _target_problem(target: str, upstreams: set[str], *, guess: bool) -> str | None:
    from difflib import get_close_matches  # noqa: PLC0415  (only once something is wrong)

    upstream, slash, model = target.partition("/")
    if not (upstream and slash and _MODEL_NAME.fullmatch(model)):
        return f'{target[:80]!r} must be "upstream/model"'
    if upstream in upstreams:
        return None
    guess = guess and len(upstreams) <= MAX_GUESSED
    near = get_close_matches(upstream, upstreams, 1) if guess else []
    return f"there is no upstream called {upstream!r}" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def _repeated(names: list[str]) -> Iterator[tuple[int, str]]:
    """Yield each name that was there before, with its place."""
    seen: set[str] = set()
    for n, name in enumerate(names):
        if name in seen:
            yield n, name
        seen.add(name)
