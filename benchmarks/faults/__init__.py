"""Faults and load: each exercise against a real server process over real ports."""
