"""Speaks HTTP: the server, the relay, the upstreams. The only import of aiohttp."""
