"""A fit, step by step: what its recipe orders, what was harvested, its heads, and what is kept."""
