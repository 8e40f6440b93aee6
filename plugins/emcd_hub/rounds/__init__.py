"""From recorded calls to sealed bundles: views of the chain, evidence, closing, rewards."""
