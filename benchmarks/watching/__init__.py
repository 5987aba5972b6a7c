"""What the watch over question streams finds, and what it raises for nothing."""
