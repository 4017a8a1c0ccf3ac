"""What the owner is told. One short-lived process at a time sends it; `send` runs only there."""
