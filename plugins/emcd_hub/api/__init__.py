"""The hub's listeners: the API that users call, the pages around it, and the operator's."""
