"""The devnet: the whole network on one machine, prepared, started, watched and stopped."""
