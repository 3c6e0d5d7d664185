"""long_context_qa: a question whose answer lies in at least five of many documents."""
