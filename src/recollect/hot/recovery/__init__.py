"""What a dead writer left is sealed by `recover`; any log is checked by `verify`, and mended by `repair`."""
