"""What `omnigym env check` looks at: one module a subject, all of them over `Bench` (bench.py)."""
