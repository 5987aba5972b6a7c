"""Protocols: our own and the Open Inference Protocol, over one way through the server."""
