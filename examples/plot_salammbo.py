"""
Salammbo: three kinds of descent on unscaled data
=================================================

The numbers of letters and of A's in the fifteen chapters of a novel. On the raw counts the loss is
a very narrow valley: batch, stochastic and mini-batch descent reach its floor at once, and then
hardly move along it. On standardised data, the estimator's default, the same optimizer converges.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sktorch_linreg import (
    FittedLineDisplay,
    LossCurveDisplay,
    LossSurfaceDisplay,
    TorchLinearRegressor,
)

# %%
here = Path(__file__).parent if "__file__" in globals() else Path.cwd()
table = np.loadtxt(here / "data" / "salammbo.csv", delimiter=",", skiprows=1, dtype=np.float32)
X, y = table[:, :1], table[:, 1]

nadam = {"optimizer": "nadam", "lr": 0.01, "random_state": 4321, "record_path": True}
raw = {**nadam, "standardize": False}
runs = {
    "full batch": TorchLinearRegressor(max_epochs=250, **raw).fit(X, y),
    "one row at a time": TorchLinearRegressor(max_epochs=20, batch_size=1, **raw).fit(X, y),
    # without shuffling, omitting the last three rows drops the incomplete batch
    "batches of 4": TorchLinearRegressor(max_epochs=40, batch_size=4, shuffle=False, **raw).fit(
        X[:12], y[:12]
    ),
    "shuffled batches of 4": TorchLinearRegressor(max_epochs=100, batch_size=4, **raw).fit(X, y),
    "full batch, standardised": TorchLinearRegressor(max_epochs=1000, **nadam).fit(X, y),
}
exact = TorchLinearRegressor().fit(X, y)

print(f"{'':26}{'epochs':>7}{'weight':>12}{'intercept':>12}{'MSE':>12}")
for name, model in {**runs, "least squares": exact}.items():
    mse = np.mean((model.predict(X) - y) ** 2)
    print(f"{name:26}{model.n_iter_:7d}{model.coef_[0]:12.7f}{model.intercept_:12.5f}{mse:12.2f}")

# %%
# The loss of each epoch, the path of each run on the loss surface, and the fitted line. The surface
# is computed for all points at once; its axes are those of the published figures, and the run in
# the third row stays outside them in its 40 epochs. Losses in the last row are fractions of the
# variance, since it is trained on standardised data; its surface is in the units of the others.
limits = ((-1000, 1000), (0, 0.15))
fig, axes = plt.subplots(len(runs), 3, figsize=(13, 3.4 * len(runs)), layout="constrained")
for row, (name, model) in zip(axes, runs.items(), strict=True):
    LossCurveDisplay.from_estimator(model, ax=row[0], name=name, log=True, mark_best=False)
    LossSurfaceDisplay.from_estimator(model, X, y, limits=limits, ax=row[1])
    row[1].plot(exact.intercept_, exact.coef_[0], "x", color="white", label="least squares")
    FittedLineDisplay.from_estimator(model, X, y, ax=row[2])
    row[0].set(title=name)
    row[1].set(xlabel="intercept", ylabel="weight")
    row[2].set(xlabel="letters", ylabel="A's", xticks=[20_000, 45_000, 70_000])
axes[0, 1].legend(loc="upper right", fontsize="small", facecolor="0.5")
fig.savefig("salammbo.png", dpi=90)
print("figure: salammbo.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_salammbo.png'
