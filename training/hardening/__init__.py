"""Adversarial fine-tuning: its settings, the network in two halves, the training, the judging."""
