"""
One line, epoch by epoch
========================

Fifty points, full-batch SGD on the raw data, and the weights of every epoch: the numbers equal
those of a plain PyTorch loop that starts from ``torch.manual_seed(59); nn.Linear(1, 1)``.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from sktorch_linreg import TorchLinearRegressor, TrainingDivergedError

# %%
noise = torch.randint(-8, 9, (50, 1), generator=torch.Generator().manual_seed(71)).numpy()
X = np.arange(1, 51, dtype=np.float32)[:, None]
y = 2 * X + 1 + noise.astype(np.float32)

settings = {"optimizer": "sgd", "max_epochs": 50, "standardize": False, "random_state": 59}
model = TorchLinearRegressor(lr=0.001, record_path=True, **settings).fit(X, y)

# %%
# Compare with the published table.
here = Path(__file__).parent if "__file__" in globals() else Path.cwd()
table = np.loadtxt(here / "data" / "line_fit_sgd_50_epochs.csv", delimiter=",", skiprows=1)
weights, intercepts = model.coef_path_.ravel(), model.intercept_path_.ravel()
print(f"{'epoch':>5}{'loss':>14}{'published':>14}{'weight':>13}{'published':>13}")
for i in (0, 1, 2, 3, 4, 9, 19, 49):
    print(
        f"{i + 1:5d}{model.loss_curve_[i]:14.5f}{table[i, 1]:14.5f}"
        f"{weights[i]:13.7f}{table[i, 2]:13.7f}"
    )
print(f"after the last update: weight {weights[-1]:.8f}, intercept {intercepts[-1]:.8f}")

# %%
# Ten times the rate is too large, and raises an error.
try:
    TorchLinearRegressor(lr=0.01, **settings).fit(X, y)
except TrainingDivergedError as error:
    print(error)

# %%
fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
for ax, i, title in ((axes[0], 0, "Before training"), (axes[2], -1, "After 50 epochs")):
    ax.plot(X, y, "o", markersize=4, alpha=0.6, label="data")
    ax.plot(X, weights[i] * X + intercepts[i], label=f"{weights[i]:.3f} x + {intercepts[i]:.3f}")
    ax.set(title=title, xlabel="x", ylabel="y")
    ax.legend()
axes[1].plot(range(1, 51), model.loss_curve_)
axes[1].set(yscale="log", title="Loss", xlabel="epoch", ylabel="mean squared error")
fig.savefig("line_epoch_by_epoch.png", dpi=120)
print("figure: line_epoch_by_epoch.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_line_epoch_by_epoch.png'
