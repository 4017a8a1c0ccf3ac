"""From readings of memory to a decision, which can be made again from its record."""
