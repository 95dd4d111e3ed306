"""Helpers for the machine and the language, independent of regression."""
