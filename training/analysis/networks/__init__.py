"""Small networks that the papers' claims need, trained here."""
