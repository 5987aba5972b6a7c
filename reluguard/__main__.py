"""`python -m reluguard` is the command `reluguard`."""

from reluguard import main

if __name__ == "__main__":
    main()
