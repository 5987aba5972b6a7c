"""The watch over question streams: who asks many near-equal questions."""
