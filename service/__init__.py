"""The gRPC edge: transport, admission, batching, health, metrics."""
