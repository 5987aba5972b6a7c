"""Captures: a known sample of production, kept for labels, retraining and drift."""
