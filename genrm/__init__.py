"""Generative reward model: pure functions for judge prompts, comparisons and length control."""
