"""The commands of `reluguard`, a module per noun.

A command imports what it needs when it runs, so loading them is cheap and serving needs no torch.
"""
