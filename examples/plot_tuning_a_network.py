"""
Tuning a network
================

How well can diabetes progression be predicted from ten measurements? A range test shows where to
search, a search finds the learning rate, loss curves show when to stop, and predictions against
measurements show how good the network is.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.metrics import PredictionErrorDisplay
from sklearn.model_selection import train_test_split

from sktorch_linreg import (
    BatchedGridSearchCV,
    LearningRateDisplay,
    LossCurveDisplay,
    TorchLinearRegressor,
    TorchMLPRegressor,
    lr_range_test,
)

X, y = load_diabetes(return_X_y=True, scaled=False)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
network = TorchMLPRegressor(
    hidden_layer_sizes=(32,), batch_size=32, alpha=0.01, max_epochs=15, tol=None, random_state=0
)

# %%
# A few hundred batches at growing rates, on a copy of the network. Above some rate the loss rises
# again; a tenth of the rate at the lowest loss is a good guess.
found = lr_range_test(network, X_train, y_train)
print(f"range test suggests lr = {found.suggested_lr:.2g}")

# %%
# Rates around the guess, five folds each, all trained together.
rates = found.suggested_lr * np.geomspace(1 / 50, 50, 21)
search = BatchedGridSearchCV(network, {"lr": rates}, cv=5).fit(X_train, y_train)
print(f"the search finds lr = {search.best_params_['lr']:.2g}, R2 {search.best_score_:.3f}")

# %%
# Train for many epochs, with a tenth of the rows held out; the model keeps the weights of the best
# epoch.
settings = {"early_stopping": True, "max_epochs": 200, "n_iter_no_change": 200}
model = search.best_estimator_.set_params(**settings).fit(X_train, y_train)
best = int(np.argmin(model.validation_loss_curve_)) + 1
print(f"best epoch {best} of {model.n_iter_}")

# %%
# On unseen patients the network is no better than the exact linear model.
linear = TorchLinearRegressor().fit(X_train, y_train)
scores = {"network": model.score(X_test, y_test), "linear": linear.score(X_test, y_test)}
print(f"R2 on held-out patients: network {scores['network']:.3f}, linear {scores['linear']:.3f}")

# %%
# The four plots. scikit-learn's own display accepts the estimator like any other.
fig, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
(first, second), (third, fourth) = axes
found.plot(ax=first)
first.set_title("1. Where to search")
LearningRateDisplay.from_search(search, ax=second)
second.axvline(found.suggested_lr, color="tab:red", linestyle="--", label="range test")
second.set(title="2. Which rate", ylim=(0.0, 0.6))
second.legend(loc="lower center")
LossCurveDisplay.from_estimator(model, name="network", ax=third)
third.set_title("3. When to stop")
PredictionErrorDisplay.from_estimator(
    model, X_test, y_test, kind="actual_vs_predicted", ax=fourth, scatter_kwargs={"alpha": 0.6}
)
fourth.set_title(f"4. What it is worth: R2 {scores['network']:.2f}, linear {scores['linear']:.2f}")
fig.savefig("tuning_a_network.png", dpi=120)
print("figure: tuning_a_network.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_tuning_a_network.png'
