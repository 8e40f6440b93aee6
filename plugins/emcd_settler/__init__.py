"""The settler role: carries attested rounds to the chain, and claims for wallets that asked for it."""
