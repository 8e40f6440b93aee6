"""The path of one call: reserve, route, forward, relay, record, settle."""
