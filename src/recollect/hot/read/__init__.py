"""Reading writers' logs: one, all of them together, the catalog, growing sources."""
