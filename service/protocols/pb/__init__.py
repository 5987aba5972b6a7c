"""Made by proto/generate.py. Don't edit."""
