"""What a dead writer left: sealed by recovery, and checked by `verify`."""
