"""The head: fitted on readings, and which taps are worth their time."""
