"""Families of networks on the whole way: export, fit, evaluate, serve, ask, score."""
