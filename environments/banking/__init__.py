"""A bank's customer desk: tools over a database, a written policy, and a simulated user."""
