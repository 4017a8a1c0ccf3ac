"""The journey of a memory sample, from the reading to the order."""
