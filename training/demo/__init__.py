"""The demo: the whole main job on digits, from training a network to asking a server."""

from reluguard.training.demo.digits import digits, train_and_export, train_classifier
from reluguard.training.demo.run import Demo, DemoResult, made_guard, run_demo
from reluguard.training.demo.story import print_demo

__all__ = [
    "Demo",
    "DemoResult",
    "digits",
    "made_guard",
    "print_demo",
    "run_demo",
    "train_and_export",
    "train_classifier",
]
