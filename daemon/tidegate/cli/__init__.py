"""The `tidegate` command; no other room imports it."""
