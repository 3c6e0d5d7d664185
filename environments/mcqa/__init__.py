"""Multiple-choice questions: one letter of several is right."""
