"""Production models from where people have them: torch, its files, the libraries' names."""
