"""launchd: its plists, its commands, the sockets it passes."""
