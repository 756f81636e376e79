"""What a command does, without a command line: configurations, plans, and the jobs that carry them out."""
