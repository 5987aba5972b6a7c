"""The red team: attackers who know the guard, and evidence that their attacks work."""
