"""One folder per environment: a pure verifier, its server, its tasks and its cases."""
