"""The hub: one OpenAI-compatible API over all nodes, its records, and the rounds settled from them."""
