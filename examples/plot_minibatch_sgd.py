"""
Mini-batch SGD against LinearRegression
=======================================

A thousand rows, batches of 128, a hundred epochs: the loss falls to the variance of the noise, and
the coefficients converge to those of least squares.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error

from sktorch_linreg import TorchLinearRegressor

# %%
rng = np.random.RandomState(0)
X = rng.randn(1000, 4).astype(np.float32)
truth = rng.randn(4).astype(np.float32)
y = X @ truth + 0.1 * rng.randn(1000).astype(np.float32)

model = TorchLinearRegressor(
    optimizer="sgd",
    lr=0.01,
    batch_size=128,
    shuffle=False,
    max_epochs=100,
    standardize=False,
    random_state=0,
).fit(X, y)
exact = LinearRegression().fit(X, y)

for epoch in range(0, 60, 5):
    print(f"epoch {epoch:3d}  loss {model.loss_curve_[epoch]:.5f}")
print(f"\n{'truth':>10}{'sklearn':>10}{'SGD':>10}")
for row in zip(truth, exact.coef_, model.coef_, strict=True):
    print("".join(f"{value:10.5f}" for value in row))
print(f"intercept {exact.intercept_:.5f} and {model.intercept_:.5f}")
for name, fitted in (("sklearn", exact), ("SGD", model)):
    print(f"mean absolute error, {name}: {mean_absolute_error(y, fitted.predict(X)):.5f}")

# %%
# A column target gives the same result: shapes (n,) and (n, 1) are never broadcast to (n, n).
column = TorchLinearRegressor(**model.get_params()).fit(X, y[:, None])
print("column target, same coefficients:", np.array_equal(column.coef_[0], model.coef_))

# %%
# Coefficients can also be set manually, and predictions are numpy arrays.
by_hand = TorchLinearRegressor()
by_hand.coef_, by_hand.intercept_ = truth, 0.0
print("set manually:", by_hand.predict(X[:3]), type(by_hand.predict(X[:3])).__name__)

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(model.loss_curve_, label="training loss")
ax.axhline(0.01, color="black", linestyle="--", label="variance of the noise")
ax.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title="Mini-batch SGD")
ax.legend()
fig.savefig("minibatch_sgd.png", dpi=120)
print("figure: minibatch_sgd.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_minibatch_sgd.png'
