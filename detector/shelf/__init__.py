"""The shelf: versions of a guard side by side, one of them current, and what changed when."""
