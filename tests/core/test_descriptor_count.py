"""How many clients there are descriptors for, and how many descriptors clients need."""

from __future__ import annotations

import pytest

from tidegate.core import descriptors
from tidegate.core.settings import Limits


@pytest.mark.parametrize(
    ("limit", "clients", "beyond"),
    [(8448, 4096, 64), (65536, 32640, 64), (1024, 384, 64), (256, 96, 16), (16, 6, 1), (3, 1, 1)],
)
def test_a_client_is_two_descriptors_and_the_rest_stays_free(
    limit: int, clients: int, beyond: int
) -> None:
    """Its own, and that of its upstream; 256 are for everything else, of few a quarter."""
    assert descriptors.connection_bounds(limit) == (clients, beyond)


@pytest.mark.parametrize("clients", [385, 1000, 4096, 32640])
def test_what_is_needed_is_just_enough(clients: int) -> None:
    """With one descriptor less there is no place for the last client."""
    assert descriptors.connection_bounds(descriptors.needed(clients)).clients == clients
    assert descriptors.connection_bounds(descriptors.needed(clients) - 1).clients == clients - 1


def test_the_default_needs_what_the_documents_say() -> None:
    """8,448 files, as docs/service.md has it."""
    assert descriptors.needed(Limits().max_connections) == 8448
