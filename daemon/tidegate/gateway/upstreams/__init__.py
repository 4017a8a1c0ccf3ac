"""Towards the upstreams: connections, models, probes; it knows no run."""
