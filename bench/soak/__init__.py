"""The soak: a real tidegate under the original fault's load, faster, and watched for growth.

`load` plays the clients, `faults` what goes wrong, `sampler` looks once a second, `judge` decides
from the figures alone, `report` and `plot` show them. `python -m soak` puts them together.
"""
