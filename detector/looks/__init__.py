"""A second look: which network sees which view, what is read of both, and how it is judged."""
