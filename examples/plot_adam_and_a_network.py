"""
Adam with a validation curve, then a small network
==================================================

On one feature, ten thousand full-batch epochs of Adam reach the least-squares solution. A sine,
which a line cannot fit, is fitted by a network with three hidden layers of eight units.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import make_regression
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor

# %%
# "auto" would use a GPU if available; a problem this small is faster on the CPU.
adam = {"optimizer": "adam", "lr": 0.001, "max_epochs": 10_000, "standardize": False}
adam |= {"batch_size": None, "dtype": "float32", "device": "cpu", "tol": None, "random_state": 0}

X, y, coef = make_regression(
    n_samples=1200, n_features=1, bias=3.0, noise=2, random_state=42, shuffle=True, coef=True
)
X_test, y_test = X[1000:], y[1000:]
X_train, X_valid, y_train, y_valid = train_test_split(
    X[:1000], y[:1000], test_size=0.2, random_state=42
)


def report(name, model, X_test, y_test):
    error = mean_squared_error(y_test, model.predict(X_test))
    print(f"{name:22} test R2 {model.score(X_test, y_test):.5f}  MSE {error:.5f}")


exact = LinearRegression().fit(X_train, y_train)
linear = TorchLinearRegressor(record_path=True, **adam).fit(X_train, y_train)
print(f"truth    {float(coef):.4f} x + 3")
print(f"sklearn  {exact.coef_[0]:.4f} x + {exact.intercept_:.4f}")
print(f"Adam     {linear.coef_[0]:.4f} x + {linear.intercept_:.4f}")
report("LinearRegression", exact, X_test, y_test)
report("TorchLinearRegressor", linear, X_test, y_test)

# %%
# With the recorded path the loss on other rows can be computed for every epoch.
fitted = X_valid @ linear.coef_path_[:-1].T + linear.intercept_path_[:-1]
linear_valid = np.mean((fitted - y_valid[:, None]) ** 2, axis=0)
print(f"epoch 9000: train {linear.loss_curve_[9000]:.4f}, validation {linear_valid[9000]:.4f}")


# %%
# Networks do not record a path, but a callback can record the loss on the validation rows.
class ValidationLoss(Callback):
    def __init__(self, X, y):
        self.X, self.y, self.losses = torch.from_numpy(X), y, []

    def on_epoch_end(self, net, **kwargs):
        error = net.predict(self.X)[:, 0] - self.y
        self.losses.append(float(np.mean(error**2)))


rng = np.random.default_rng(42)
S = rng.normal(size=(1000, 1))
s = np.sin(2 * S[:, 0]) + 0.1 * rng.normal(size=1000)
S_train, S_test, s_train, s_test = train_test_split(S, s, test_size=0.2, random_state=42)
watch = ValidationLoss(S_test, s_test)
network = TorchMLPRegressor(hidden_layer_sizes=(8, 8, 8), alpha=0.0, callbacks=[watch], **adam)
network.fit(S_train, s_train)
line = LinearRegression().fit(S_train, s_train)
report("line on a sine", line, S_test, s_test)
report("network on a sine", network, S_test, s_test)

# %%
fig, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
for row, train, valid, name in (
    (axes[0], linear.loss_curve_, linear_valid, "Line"),
    (axes[1], network.loss_curve_, watch.losses, "Network"),
):
    row[0].plot(train, label="training")
    row[0].plot(valid, label="validation")
    row[0].set(yscale="log", xlabel="epoch", ylabel="mean squared error", title=f"{name}: loss")
    row[0].legend()
grid = np.linspace(-3, 3, 200)[:, None]
axes[0, 1].plot(X_test, y_test, ".", alpha=0.5, label="test rows")
axes[0, 1].plot(grid, linear.predict(grid), color="black", label="Adam")
axes[1, 1].plot(S_test, s_test, ".", alpha=0.5, label="test rows")
axes[1, 1].plot(grid, line.predict(grid), color="grey", label="LinearRegression")
axes[1, 1].plot(grid, network.predict(grid), color="black", label="network")
for ax in axes[:, 1]:
    ax.set(xlabel="x", ylabel="y", title="Test rows")
    ax.legend()
fig.savefig("adam_and_a_network.png", dpi=120)
print("figure: adam_and_a_network.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_adam_and_a_network.png'
