"""Models at the size in which they were published."""
