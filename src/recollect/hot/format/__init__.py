"""What lies on disk: files and folders, notes, segments, tails, layouts, and the schema arranged for them."""
