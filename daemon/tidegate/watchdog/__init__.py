"""Processes, their channel, and the service manager."""
