"""Evaluation: what a guard detects, beside baselines, on images it never saw."""
