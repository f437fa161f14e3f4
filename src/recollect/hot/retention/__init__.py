"""What goes from a workspace: evictions, deletions and purges, and in which order of durable steps."""
