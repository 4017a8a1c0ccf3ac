"""`tidegate service`: to become a service, and to stop being one."""
