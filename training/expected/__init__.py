"""What long work is expected to take."""
