"""Retraining: new attacks in, old ones kept, and the gate between."""
