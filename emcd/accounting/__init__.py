"""Numbers in, numbers out: prices, credits, emission, rewards, trees, the audit of a round. Pure, no IO."""
