"""Ways to compare two models other than reading a crosscoder by hand, behind one interface with one kind of result."""
