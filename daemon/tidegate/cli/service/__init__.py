"""`tidegate service`: install it under systemd or launchd, control it there, uninstall it."""
