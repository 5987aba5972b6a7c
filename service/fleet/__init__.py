"""One server of several processes: a parent that watches, and children that answer."""
