"""The protocol: typed records, signatures, trees, bundle, wire messages. Pure, no IO."""
