"""Synchronous GRPO over torch, vLLM and Ray."""
