"""Results: the one result file, the reader over a directory of them, plots and the report.

Imports only root modules.
"""
