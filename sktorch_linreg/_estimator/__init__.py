"""Code shared by the estimators."""
