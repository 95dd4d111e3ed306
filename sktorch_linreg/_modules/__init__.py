"""The modules that are trained."""
