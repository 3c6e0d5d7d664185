"""Agent servers: they take a task and return a rollout."""
