"""What outlives a worker: the journal of runs and the history, each a file and a thread of its own.

It knows values, and no run in motion: what is written when is said by `relay`.
"""
