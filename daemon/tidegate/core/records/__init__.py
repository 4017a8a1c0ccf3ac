"""What outlives a run, as values: what the journal and the history keep of it."""
