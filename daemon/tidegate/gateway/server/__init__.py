"""Bytes to requests and answers to bytes; it knows no run."""
