"""Where servers run: in process, local processes, Ray actors, containers, or at a URL."""
