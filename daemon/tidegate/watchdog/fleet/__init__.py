"""What befalls workers: what they say, passed on, and what lifecycle decides, performed."""
