"""Config files as people write them, and what is put into them to break their reader."""

from __future__ import annotations

from pathlib import Path

from tidegate import config

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "packaging" / "config.toml").read_bytes()

CONFIGS = [
    EXAMPLE.replace(b"\n#", b"\n"),
    b'listen = "127.0.0.1:8433"\nallowed_hosts = ["a.example", "*.b.example:1"]\n',
    b'[limits]\ntotal_s = 3600\nmax_body = "32MiB"\nidle_s = 120.5\n',
    b'[[upstream]]\nname = "box"\nurl = "http://127.0.0.1:11434"\nmax_concurrent = 2\n'
    b'[[model]]\nname = "fast"\ntargets = ["box/a", "box/b"]\n',
    b'[memory]\nbudget = "512MiB"\nmode = "observe"\n[drain]\nstop_limit_s = 30\n',
    b'upstream = [{name = "a", url = "https://x.example/v1", api_key_env = "KEY"}]\n',
    b"[auth]\ntokens_file = '/nowhere'\nallow_without_token = true\n",
    b"",
]
WORDS = [
    *(
        b"[[upstream]]\n",
        b"[limits]\n",
        b'"""',
        b"'''",
        b"\\u0000",
        b"\\ud800",
        b"= ",
        b"nan",
        b"-inf",
    ),
    *(
        b"1979-05-27T07:32:00Z",
        b"a.b.c.d = 1\n",
        b"9" * 5_000,
        b"[" * 500,
        b"{a=" * 200,
        b"\\",
        b"\x00",
    ),
    *(b'"\xff"', b"0x" + b"f" * 400, b"1e400", b'name = "box"\n', b'url = "http://[::1"\n', b"# "),
    *(b'url = "http://' + b"a" * 70 + b'.example"\n', b'"http://u:p@x"', b'"unix:"', b'"-1s"'),
]


def read(text: bytes, folder: Path) -> None:
    """Read it as the watchdog does; every refusal is a ConfigError with words.

    Any other exception is what ended a watchdog once.
    """
    file = folder / "config.toml"
    file.write_bytes(text)
    said = "fine"
    try:
        config.load(file, folder, {"KEY": "value"})
    except config.ConfigError as error:
        said = str(error)
    assert said.strip(), "a refusal without a word"
    assert len(said) < 100_000, "a refusal that fills the log"
