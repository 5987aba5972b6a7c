"""Offline: attack, harvest, fit, calibrate, evaluate. Needs the extra `reluguard[training]`."""
