"""A log line from the record to the disk; no caller ever waits for it."""
