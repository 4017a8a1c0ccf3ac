"""One file a family of routes; only `routes` knows them all, and no handler imports it."""
