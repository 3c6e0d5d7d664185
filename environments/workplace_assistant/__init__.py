"""The environment `workplace_assistant`."""
