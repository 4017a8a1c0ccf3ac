"""tidegate: an LLM streaming gateway whose streams are bounded, resumable runs."""

__version__ = "0.5.0"
