"""systemd: its units, its commands, what it is told."""
