"""The server kit: records, base server, agent / model / resources servers, client, hosts and the CLI's entry."""
