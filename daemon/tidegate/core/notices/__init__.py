"""What tidegate tells its owner, as values: what is news, where it goes, and when."""
