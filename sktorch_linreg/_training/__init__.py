"""Trained by gradients."""
