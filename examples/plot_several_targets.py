"""
Several targets at once
=======================

Yields of two crops from temperature, rainfall and humidity: by gradient descent with hand-written
gradients in numpy, by the same descent in PyTorch, and by the exact solver.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sktorch_linreg import TorchLinearRegressor

# %%
here = Path(__file__).parent if "__file__" in globals() else Path.cwd()
table = np.loadtxt(here / "data" / "crop_yields.csv", delimiter=",", skiprows=1)
X, Y = table[:, :3].astype(np.float32), table[:, 3:].astype(np.float32)

settings = {"optimizer": "sgd", "lr": 1e-5, "standardize": False, "random_state": 0}
model = TorchLinearRegressor(max_epochs=100, record_path=True, **settings).fit(X, Y)

# %%
# The same descent by hand, from the same start. The loss is the mean over rows and targets.
W, b = model.coef_path_[0].astype(float), model.intercept_path_[0].astype(float)
for _ in range(100):
    residual = X @ W.T + b - Y
    W -= 1e-5 * 2 / residual.size * residual.T @ X
    b -= 1e-5 * 2 / residual.size * residual.sum(axis=0)
print("largest difference of the weights:", np.abs(W - model.coef_).max())

# %%
# Fifteen rows in shuffled batches of five, and the exact solution.
X15, Y15 = np.tile(X, (3, 1)), np.tile(Y, (3, 1))
batches = TorchLinearRegressor(max_epochs=100, batch_size=5, **settings).fit(X15, Y15)
exact = TorchLinearRegressor().fit(X, Y)
heads = [f"{name:>9}" for name in ("yield", "SGD", "batches", "exact")]
print("apples: ", *heads, "   oranges:", *heads)
predictions = [m.predict(X) for m in (model, batches, exact)]
for i in range(5):
    apples, oranges = ([Y[i, t], *(p[i, t] for p in predictions)] for t in (0, 1))
    print(" " * 8, *(f"{v:9.1f}" for v in apples), " " * 11, *(f"{v:9.1f}" for v in oranges))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
left.plot(model.loss_curve_, label="5 rows, full batch")
left.plot(batches.loss_curve_, label="15 rows, batches of 5")
left.set(yscale="log", xlabel="epoch", ylabel="mean squared error", title="Loss of both targets")
left.legend()
for t, name in enumerate(("apples", "oranges")):
    right.plot(Y[:, t], predictions[1][:, t], "o", label=f"{name}, trained in batches")
right.plot(Y.ravel(), predictions[2].ravel(), "x", color="black", label="both, exact")
right.axline((20, 20), slope=1, color="grey", linewidth=1)
right.set(xlabel="yield", ylabel="predicted yield", title="Predictions")
right.legend()
fig.savefig("several_targets.png", dpi=120)
print("figure: several_targets.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_several_targets.png'
