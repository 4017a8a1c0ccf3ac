"""What outlives a run, as the loop tells it: what is written when, and what is brought back."""
