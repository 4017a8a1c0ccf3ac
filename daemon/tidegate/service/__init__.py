"""Where former versions look for the worker. It goes with the next release."""
