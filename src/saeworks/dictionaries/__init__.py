"""What a dictionary is: the one class, its activation functions, exact rewrites, sparse codes and files."""
