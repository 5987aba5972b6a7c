"""Trying a guard by hand: a picture in, attacks and harmless changes by sliders, verdicts out."""
