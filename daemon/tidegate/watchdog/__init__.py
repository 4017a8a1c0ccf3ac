"""The watchdog process: a plain loop without asyncio and HTTP, which never imports the gateway."""
