"""The numbers of SAEBench, its faults included."""
