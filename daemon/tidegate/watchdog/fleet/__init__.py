"""What happens to workers: their messages passed on, and what lifecycle decides performed."""
