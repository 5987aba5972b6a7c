"""Models being served: each with a live guard, a queue and turns to run."""
