"""What the operating system tells and keeps: memory, processes, signals, private files; it decides
nothing.
"""
