"""Where servers run: in process, local processes, Ray actors."""
