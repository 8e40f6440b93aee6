"""The embedded chain: a real EVM (py-evm) behind JSON-RPC, persisted in one SQLite file.

For development and for networks of one machine. It never reorganises, has one block producer
and no peers; everything else (fees, gas, receipts, logs, history) is what a public chain gives.
"""
