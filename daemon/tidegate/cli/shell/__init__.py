"""Completions and the manual page, as files of the package; `make generated` writes them."""
