"""One module per paper: runs its reproduction and returns its claims."""
