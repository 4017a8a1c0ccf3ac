"""Reads the machine: memory samples and budgets. The only import of psutil."""
