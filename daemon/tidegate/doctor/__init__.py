"""What may be wrong with this computer, looked for from outside; every finding says its fix."""
