"""The page at `/`: its files, and what it is told while it is open."""
