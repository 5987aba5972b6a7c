"""The gRPC edge: transport, admission, batching, health, metrics. Knows detector; detector knows nothing of it."""
