"""Pages: every HTML page, plot and terminal table. They print; judging is done elsewhere."""
