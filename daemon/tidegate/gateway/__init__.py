"""The worker process: it speaks HTTP, and never imports the watchdog."""
