"""Reading every writer's log together: stores, the catalog, growing sources."""
