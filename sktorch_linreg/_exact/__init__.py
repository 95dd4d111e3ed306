"""Solved exactly."""
