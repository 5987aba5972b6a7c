"""Asks a server without end: clean images, and now and then a wave with attacked ones among them.

python traffic.py IMAGES ADDRESS [--rate R] [--quiet S] [--wave S] [--share P] [--seed N]
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Iterator

import numpy as np

from reluguard import CallError, Client

BATCH = 4  # images of one request


def main() -> None:
    """Ask as the arguments say, until somebody ends it."""
    reader = argparse.ArgumentParser()
    reader.add_argument("images", help="An .npz with `clean` and `attacked`, uint8 (N, H, W, C).")
    reader.add_argument("address", help="host:port of the server.")
    reader.add_argument("--rate", type=float, default=10.0, help="Requests a second.")
    reader.add_argument("--quiet", type=float, default=60.0, help="Seconds of clean images.")
    reader.add_argument("--wave", type=float, default=300.0, help="Seconds of an attack.")
    reader.add_argument("--share", type=float, default=0.6, help="Attacked images in a wave.")
    reader.add_argument("--seed", type=int, default=0)
    given = reader.parse_args()
    with np.load(given.images) as arrays:
        clean, attacked = arrays["clean"], arrays["attacked"]
    draw = random.Random(given.seed)  # noqa: S311 - which image comes next is no secret
    with Client(given.address) as client:
        for began, share in shares(given.quiet, given.wave, given.share):
            pools = [attacked if draw.random() < share else clean for _ in range(BATCH)]
            images = np.stack([pool[draw.randrange(len(pool))] for pool in pools])
            try:
                client.inspect(images)
            except CallError as error:  # a restart, or more than the server can do
                say(str(error))
            time.sleep(max(0.0, began + 1 / given.rate - time.monotonic()))


def shares(quiet_s: float, wave_s: float, share: float) -> Iterator[tuple[float, float]]:
    """Yield when each request begins, and how many of its images are attacked."""
    for length, now, words in itertools.cycle(
        ((quiet_s, 0.0, "clean images"), (wave_s, share, "an attack: {:.0%} of the images"))
    ):
        say(words.format(now) + f", for {length:g} s")
        until = time.monotonic() + length
        while (began := time.monotonic()) < until:
            yield began, now


def say(words: str) -> None:
    """Write a line with the time."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
