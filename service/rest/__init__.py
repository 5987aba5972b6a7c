"""The Open Inference Protocol by HTTP: v2 REST with its binary tensor extension."""
