"""All about systemd and launchd, both halves: what is installed, and what a process tells them."""
