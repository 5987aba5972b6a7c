"""What the source papers claim, paper by paper, each beside what was measured here."""
