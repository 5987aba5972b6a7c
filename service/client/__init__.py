"""The client: a server asked from Python."""
