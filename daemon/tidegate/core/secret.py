"""Keys in texts that are not ours: a known one is hidden, an unknown one is recognised.

An upstream may repeat the key that it was sent ("Incorrect API key provided: …"), and what it says
goes to clients, logs and `status`, none of which may know it. And people put keys where something
else belongs, a client into the model's name for one.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

HIDDEN = "***"
MIN_LENGTH = 6  # what is shorter is no secret, and is in every other word

# What the keys of clouds and of tidegate begin with, and a word that is as long and mixed as only
# chance makes it. Names of models are made of shorter parts: "Qwen2.5-Coder-32B-Instruct-Q4_K_M".
_BEGINNING = re.compile(
    r"\b(?:sk-|tg-|xai-|pplx-|nvapi-|glpat-|gsk_|hf_|r8_|ghp_|AIza)[A-Za-z0-9_-]{16,}"
)
_NAME = re.compile(r"[\w./:@+-]{1,120}")  # as servers call their models
_RANDOM = re.compile(r"(?=[a-zA-Z]*[0-9])(?=[0-9]*[a-zA-Z])[A-Za-z0-9]{16,}")


class Secret:
    """Hides the key of one upstream and its like; an empty one hides nothing."""

    __slots__ = ("_forms",)

    def __init__(self, *keys: str | None) -> None:
        """Hide `keys`, given as they are sent."""
        # The longest first, for one may begin with another.
        known = sorted((k for k in keys if k and len(k) >= MIN_LENGTH), key=len, reverse=True)
        forms = dict.fromkeys(form for key in known for form in _written(key))
        self._forms = tuple((form, form.encode()) for form in forms)

    def __repr__(self) -> str:
        return f"<Secret {HIDDEN if self._forms else 'none'}>"

    def __bool__(self) -> bool:
        """Say whether there is anything to hide."""
        return bool(self._forms)

    def hide(self, text: str) -> str:
        """Replace the key in `text`."""
        for form, _ in self._forms:
            text = text.replace(form, HIDDEN)
        return text

    def hide_bytes(self, data: bytes) -> bytes:
        """Replace the key in `data`; what is JSON remains JSON."""
        for _, form in self._forms:
            data = data.replace(form, HIDDEN.encode())
        return data

    def hide_values(self, values: dict[str, str]) -> dict[str, str]:
        """Replace the key in the values; the names stay. Returns `values` where none says it."""
        if not any(form in value for form, _ in self._forms for value in values.values()):
            return values
        return {name: self.hide(value) for name, value in values.items()}


NO_SECRET = Secret(None)


def looks_like_key(text: str) -> bool:
    """Say whether some part of the text can hardly be anything but a key."""
    return bool(_BEGINNING.search(text) or _RANDOM.search(text))


@lru_cache(maxsize=64)  # the same few names come again and again
def name_shown(name: str) -> str:
    """Give a model's name where it looks like one, and else its size alone.

    It is the client's text: a prompt or a key may have got there.
    """
    is_plain = _NAME.fullmatch(name) and not looks_like_key(name)
    return name if is_plain else f"(a name of {len(name)} characters)"


def hide_keys(text: str) -> str:
    """Replace what looks like a key in `text`."""
    return _RANDOM.sub(HIDDEN, _BEGINNING.sub(HIDDEN, text))


def _written(key: str) -> tuple[str, ...]:
    """List the forms of a key: as it is, and as JSON has it, with two ways to write a slash."""
    escaped = msgspec.json.encode(key).decode()[1:-1]
    return tuple(dict.fromkeys((escaped.replace("/", "\\/"), escaped, key)))
