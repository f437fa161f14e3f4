"""What is asked and made of a buffer's versions: how two of them differ, and columns that are computed from rows."""
