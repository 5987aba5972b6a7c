"""The twin: the production model in torch, for gradients."""
