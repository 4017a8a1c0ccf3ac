"""Weeks of a worker's life in seconds, to try on them what decides about memory.

`worker` is the model of a worker, `scenarios` what befalls it, `world` puts the shipped code
around it (growth, memory policy, lifecycle), `naive` the rules that others use, `recorded` a worker
whose memory was measured.
"""
