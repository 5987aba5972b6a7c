"""The HTTP side: metrics, the status page and its JSON."""
