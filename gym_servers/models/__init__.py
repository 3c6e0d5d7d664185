"""Model servers: vLLM, any OpenAI-compatible URL, scripted."""
