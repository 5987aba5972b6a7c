"""Files of strangers on their way to pixels: weighed first, and decoded where that can be ended."""
