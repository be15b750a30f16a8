"""Scripts that measure. They are not installed."""
