"""The second look in training: which one serves a model, and attacks on both looks at once."""
