"""Structured outputs: an answer in a given format that matches a given JSON schema."""
