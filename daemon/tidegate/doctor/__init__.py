"""What may be wrong with this computer or its tidegate, and what mends it."""
