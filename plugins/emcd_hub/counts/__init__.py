"""Counting the tokens of answers again, beside the calls."""
