"""Programming tasks graded by running the answer on tests, in a sandbox."""
