"""What may be wrong with this computer, and what mends it: `examination` looks at all of it."""
