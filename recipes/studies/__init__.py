"""Runs of train.py, many at a time: shared stage one, tables, studies."""
