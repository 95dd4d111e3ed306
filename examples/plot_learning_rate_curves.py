"""
Learning-rate curves: how far is a good rate from a bad one?
============================================================

Which learning rate suits an optimizer, and how much does it matter? The surest way to find out is
to try them all: four optimizers, 25 rates and ten folds are a thousand networks, which
`BatchedGridSearchCV` trains together in a second or two.
"""

import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.exceptions import FitFailedWarning
from sklearn.model_selection import KFold

from sktorch_linreg import BatchedGridSearchCV, TorchLinearRegressor, TorchMLPRegressor

X, y = load_diabetes(return_X_y=True, scaled=False)
rates = np.geomspace(1e-4, 1.0, 25)
optimizers = ["sgd", "adam", "nadam", "rmsprop"]
folds = KFold(10, shuffle=True, random_state=0)

# %%
# A small network. Rates at which training diverges score `error_score`, here 0, the score of a
# constant prediction, so that they stay in the plot.
network = TorchMLPRegressor(
    hidden_layer_sizes=(16,), batch_size=64, max_epochs=40, tol=None, random_state=0
)
search = BatchedGridSearchCV(
    network,
    {"optimizer": optimizers, "lr": rates},
    cv=folds,
    refit=False,
    error_score=0.0,
)
begin = time.perf_counter()
with warnings.catch_warnings():
    # the largest rates are expected to fail
    warnings.simplefilter("ignore", FitFailedWarning)
    search.fit(X, y)
seconds = time.perf_counter() - begin
n_fits = len(search.cv_results_["params"]) * folds.n_splits
print(f"{n_fits} networks in {seconds:.1f} s, {1e3 * seconds / n_fits:.2f} ms each")

# %%
# The exact linear model, which needs no learning rate, on the same folds.
exact = BatchedGridSearchCV(TorchLinearRegressor(), {"alpha": [0.0]}, cv=folds).fit(X, y)
print(f"exact linear model: {exact.best_score_:.4f}")

# %%
# `cv_results_` has the keys of GridSearchCV: mean and standard deviation for each candidate.
results = search.cv_results_
fig, ax = plt.subplots(figsize=(8, 4.8), layout="constrained")
print(f"\n{'optimizer':10}{'best rate':>11}{'mean R2':>9}   rates within 0.02 of the best")
for optimizer in optimizers:
    rows = results["param_optimizer"] == optimizer
    lr = results["param_lr"][rows].astype(float)
    mean, std = results["mean_test_score"][rows], results["std_test_score"][rows]
    error = std / np.sqrt(folds.n_splits)
    (line,) = ax.plot(lr, mean, "o-", markersize=3, label=optimizer)
    ax.fill_between(lr, mean - error, mean + error, color=line.get_color(), alpha=0.15)
    good, best = lr[mean > mean.max() - 0.02], lr[mean.argmax()]
    print(f"{optimizer:10}{best:11.4f}{mean.max():9.4f}   {good[0]:.4f} to {good[-1]:.4f}")

ax.axhline(exact.best_score_, color="black", linestyle="--", label="exact linear model")
ax.set(xscale="log", xlabel="learning rate", ylabel="mean R2 of 10 folds", ylim=(-0.3, 0.6))
ax.set_title("Learning-rate curves of a small network on the diabetes data")
ax.legend(loc="lower center", ncols=2)
fig.savefig("learning_rate_curves.png", dpi=120)
print("figure: learning_rate_curves.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_learning_rate_curves.png'
