"""multi_challenge: the next turn of a conversation, graded by a rubric that a judge answers item by item."""
