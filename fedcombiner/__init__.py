"""Shared code of the Federated Combiner stack: wire, plumbing, storage, client, command."""
