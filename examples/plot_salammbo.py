"""
Salammbo: three kinds of descent on unscaled data
=================================================

Letters and A's in the fifteen chapters of a novel. On the raw counts batch, stochastic and
mini-batch descent each walk down a very narrow valley; on standardised data, which is what the
estimator does by itself, the same optimizer arrives.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sktorch_linreg import TorchLinearRegressor

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
# The loss over intercept and weight, and the way each run took.
intercepts, weights = np.linspace(-1000, 1000, 100), np.linspace(0, 0.15, 100)
surface = np.log10(
    [[np.mean((w * X[:, 0].astype(float) + b - y) ** 2) for b in intercepts] for w in weights]
)
fig, axes = plt.subplots(len(runs), 3, figsize=(13, 3.4 * len(runs)), layout="constrained")
for row, (name, model) in zip(axes, runs.items(), strict=True):
    row[0].plot(range(1, model.n_iter_ + 1), model.loss_curve_)
    row[0].set(yscale="log", xlabel="epoch", ylabel="loss", title=name)
    shown = row[1].contourf(intercepts, weights, surface, levels=30, cmap="viridis")
    row[1].plot(model.intercept_path_, model.coef_path_[:, 0], ".-", color="red", markersize=3)
    row[1].plot(exact.intercept_, exact.coef_[0], "*", color="white", markersize=10)
    row[1].set(xlim=(-1000, 1000), ylim=(0, 0.15), xlabel="intercept", ylabel="weight")
    fig.colorbar(shown, ax=row[1], label="log10 loss")
    row[2].plot(X, y, "o")
    row[2].plot(X, model.predict(X), color="black")
    row[2].set(xlabel="letters", ylabel="A's", xticks=[20_000, 45_000, 70_000])
fig.savefig("salammbo.png", dpi=90)
print("picture: salammbo.png")
