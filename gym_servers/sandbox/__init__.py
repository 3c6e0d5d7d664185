"""Runs programs that a model wrote: `pool.Sandbox` in the server, warm fork servers (`fork_server.py`) that isolate each run
(`isolation.py`). README.md says against what, and by which layers."""
