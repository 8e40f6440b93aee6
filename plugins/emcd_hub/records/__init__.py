"""The records of calls: rows, signed batches, proofs."""
