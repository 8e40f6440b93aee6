"""The command line: thin commands over what the other packages do.

Owns parsing, printing and exit codes. A command module imports what is heavy inside the command.
"""
