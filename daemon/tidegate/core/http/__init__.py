"""What the bytes of HTTP and WebSocket say, and the one grammar of hosts and URLs; no socket."""
