"""Figures, files, tables and pictures of load runs. Consumes `Run`s and stored results; decides nothing about load."""
