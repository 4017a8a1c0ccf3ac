"""The file of tokens: made once, shown once, private, and never half written."""

from __future__ import annotations

import hashlib
import multiprocessing
from datetime import UTC, datetime

import pytest

from tidegate.config import tokens
from tidegate.config.tokens import TokenError
from tidegate.core import scopes


@pytest.fixture
def path(tmp_path):
    """Where the file would be."""
    return tmp_path / "tokens"


def test_new_token_is_long_and_only_its_hash_is_kept(path):
    """A token holds 256 random bits, and the file holds its SHA-256 and not the token."""
    plaintext = tokens.new(path, "laptop", datetime(2026, 11, 22, tzinfo=UTC))
    assert plaintext.startswith("tg-")
    assert len(plaintext) >= len("tg-") + 43  # 32 bytes in base64
    assert plaintext not in path.read_text()
    [token] = tokens.read(path)
    assert token.name == "laptop"
    assert token.sha256 == hashlib.sha256(plaintext.encode()).hexdigest()
    assert token.created == "2026-11-22T00:00:00+00:00"


@pytest.mark.parametrize("scope", ["read", "owner"])
def test_another_scope_is_hashed_with_the_token(path, scope):
    """Who reads the file without the scope finds no token in it that a key would fit."""
    plaintext = tokens.new(path, "panel", scope=scope)
    [token] = tokens.read(path)
    assert (token.name, token.scope) == ("panel", scope)
    digest = hashlib.sha256(plaintext.encode()).hexdigest()
    assert digest not in path.read_text()
    assert token.sha256 == scopes.stored_hash(digest, scope)
    assert len({scopes.stored_hash(digest, each) for each in (*scopes.MEANINGS, "audit")}) == 4


def test_a_file_without_scopes_is_of_tokens_to_use(path):
    """So were all that were made before there were scopes, and they neither widen nor narrow."""
    made = f'[{{"name": "old", "sha256": "{"ab" * 32}", "created": "2026-11-22"}}]'
    path.write_text(made)
    path.chmod(0o600)
    tokens.new(path, "panel", scope="read")
    old, panel = tokens.read(path)
    assert (old.scope, old.sha256, panel.scope) == ("use", "ab" * 32, "read")
    assert tokens.warnings(path, [old, panel]) == []


def test_a_scope_of_a_newer_version_is_kept_and_told(path):
    """It grants nothing here, and is there again when the newer version comes back."""
    made = f'[{{"name": "new", "sha256": "{"ab" * 32}", "scope": "audit"}}]'
    path.write_text(made)
    path.chmod(0o600)
    tokens.new(path, "laptop")
    new, laptop = tokens.read(path)
    assert (new.scope, new.sha256) == ("audit", "ab" * 32)
    [warning] = tokens.warnings(path, [new, laptop])
    assert "the token new may do nothing" in warning
    assert "audit" in warning
    assert "tidegate token revoke new" in warning


def test_file_is_private_and_nothing_is_left_beside_it(path):
    """The file has mode 0600, and the copy it was written to is gone."""
    tokens.new(path, "a")
    tokens.new(path, "b")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["tokens"]


def test_no_file_means_no_tokens(path):
    """A missing file is an empty one."""
    assert tokens.read(path) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_file_open_to_others_is_refused(path, mode):
    """A file that others can read or write is an error, for reading and for changing."""
    tokens.new(path, "a")
    path.chmod(mode)
    with pytest.raises(TokenError, match="chmod 600"):
        tokens.read(path)
    with pytest.raises(TokenError, match="chmod 600"):
        tokens.new(path, "b")


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "{}", '[{"name": "a"}]', '[{"name": "a", "sha256": "xyz"}]', "[1]", "\xff"),
        *(
            f'[{{"name": "a", "sha256": "{"ab" * 32}", "scope": {scope}}}]'
            for scope in ("null", "1", '""', '"\\ud800"', '"a\\u009b"', '["read"]')
        ),
    ],
)
def test_damaged_file_is_an_error(path, text):
    """A file that cannot be understood is an error, not an empty list: that would open the door."""
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(TokenError, match="tokens"):
        tokens.read(path)


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a\n", "x" * 65, "ü", "a/b"])
def test_names_that_are_none_are_refused(path, name):
    """A name that would be hard to type or to log is refused, and no file is made."""
    with pytest.raises(TokenError, match="name is"):
        tokens.new(path, name)
    assert not path.exists()


def test_name_is_taken_only_once(path):
    """A second token of one name is refused."""
    tokens.new(path, "a")
    with pytest.raises(TokenError, match="already"):
        tokens.new(path, "a")


def test_revoke_by_name_or_by_the_beginning_of_the_hash(path):
    """A token is taken back by its name or by its hash, and the others stay."""
    for name in ("a", "b", "c"):
        tokens.new(path, name)
    second = tokens.read(path)[1]
    assert tokens.revoke(path, "a").name == "a"
    assert tokens.revoke(path, second.sha256[:12].upper()).name == "b"
    assert [token.name for token in tokens.read(path)] == ["c"]


@pytest.mark.parametrize("which", ["", "missing", "abc"])
def test_revoke_of_no_token_says_so(path, which):
    """What names no token, or too little of a hash, is an error and changes nothing."""
    tokens.new(path, "a")
    with pytest.raises(TokenError, match="no such token"):
        tokens.revoke(path, which)
    assert len(tokens.read(path)) == 1


def test_revoke_where_none_was_ever_made(tmp_path):
    """No directory yet: there is no such token, and none is made."""
    with pytest.raises(TokenError, match="no such token"):
        tokens.revoke(tmp_path / "never" / "tokens", "a")
    assert not (tmp_path / "never").exists()


def test_revoke_refuses_to_guess(path):
    """The beginning that two hashes share revokes neither."""
    entries = [f'{{"name": "{name}", "sha256": "{"ab" * 31}{name * 2}"}}' for name in "cd"]
    path.write_text(f"[{', '.join(entries)}]")
    path.chmod(0o600)
    with pytest.raises(TokenError, match="more than one"):
        tokens.revoke(path, "abababab")


def test_missing_directory_is_a_plain_error(tmp_path):
    """A state directory that is not there is named."""
    with pytest.raises(TokenError, match="nowhere"):
        tokens.new(tmp_path / "nowhere" / "tokens", "a")


def test_two_commands_at_once_lose_no_token(path):
    """Changes made at the same time by several processes are all kept."""
    names = [f"n{number}" for number in range(12)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.starmap(tokens.new, [(path, name) for name in names])
    assert sorted(token.name for token in tokens.read(path)) == sorted(names)
