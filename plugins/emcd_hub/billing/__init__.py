"""Accounts, API keys, credits: who may call, and what it costs."""
