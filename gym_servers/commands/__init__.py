"""Subcommands of the CLI that need no trainer."""
