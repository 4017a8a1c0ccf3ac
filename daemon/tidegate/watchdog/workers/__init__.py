"""Processes and their lines: started, watched, drained, ended."""
