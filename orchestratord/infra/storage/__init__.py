"""Artifact stores: in memory and content-addressed files."""
