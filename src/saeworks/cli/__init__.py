"""The command line: one thin file per command that parses, calls a job and prints what came back."""
