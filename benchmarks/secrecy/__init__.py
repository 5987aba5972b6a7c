"""What a secret drawn for each deployment is worth against attackers without the guard's weights.

The owner of a model fits a guard, a secret decides what it reads, and an attacker who knows model
and method fits guards of their own on other images, attacks those and tries the result on the
owner's. N images, D rates.
"""
