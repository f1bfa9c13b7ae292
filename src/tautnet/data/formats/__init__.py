"""Readers of standard file formats, plain functions from paths to arrays."""
