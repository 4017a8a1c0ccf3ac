"""Runs in motion, between one upstream and many readers; it knows no route."""
