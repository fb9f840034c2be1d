"""Modules that a compressed or exported model contains."""
