"""Statistics: detection quality and means with their intervals."""
