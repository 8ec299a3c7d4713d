"""Readers of the result files of other programs; each file is one, found by :mod:`harness.reports.importing`."""
