"""Grid and random searches that train all candidates and folds as one program."""

from .searches import BatchedGridSearchCV, BatchedRandomizedSearchCV

__all__ = ["BatchedGridSearchCV", "BatchedRandomizedSearchCV"]
