"""What a shell and a reader of manuals need to know of the command."""
