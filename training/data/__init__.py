"""Data: labelled images, how they are split, and the user's case opened and checked."""
