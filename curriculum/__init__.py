"""Difficulty curriculum: pure functions over pass rates."""
