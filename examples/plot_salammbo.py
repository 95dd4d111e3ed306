"""
Salammbo: three kinds of descent on unscaled data
=================================================

Letters and A's in the fifteen chapters of a novel. On the raw counts the loss is a very narrow
valley: batch, stochastic and mini-batch descent find its floor at once, and then hardly move along
it. On standardised data, which is what the estimator does by itself, the same optimizer arrives.
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
    # without shuffling, leaving the last three rows out is dropping the incomplete batch
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
# The loss of each epoch, the way of each run over the surface of the loss, and the fitted line. The
# surface is worked out for all points at once; its axes are those of the published pictures, which
# the run of the third row does not reach in its 40 epochs. Losses of the last row are shares of the
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
print("picture: salammbo.png")
