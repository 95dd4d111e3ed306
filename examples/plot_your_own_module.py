"""
Your own module: a convolution over time
========================================

The frequency of a noisy wave, from 64 samples of it: a module of two layers, written as in any
PyTorch tutorial, beside linear regression and a fully connected network. Then a loss whose own
parameter learns how noisy the targets are.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sktorch_linreg import TorchLinearRegressor, TorchMLPRegressor, TorchRegressor

# %%
# Each row is one channel of 64 samples: a wave of unknown frequency and phase, in noise. The
# measured frequency, the target, is noisy too.
rng = np.random.default_rng(0)
frequency = rng.uniform(2, 8, 1500)
phase = rng.uniform(0, 2 * np.pi, (1500, 1))
time = np.linspace(0, 1, 64)
waves = np.sin(2 * np.pi * frequency[:, None] * time + phase) + 0.3 * rng.normal(size=(1500, 64))
X, y = waves[:, None, :], frequency + 0.2 * rng.normal(size=1500)
train, test = slice(0, 1000), slice(1000, 1500)


# %%
# The module, and the three lines that train it. `X` has the shape (n_samples, 1, 64); features and
# target are standardised internally, and predictions are in the units of `y`.
class Waves(nn.Module):
    def __init__(self, n_filters=16):
        super().__init__()
        self.filters = nn.Conv1d(1, n_filters, kernel_size=9)
        self.out = nn.Linear(n_filters, 1)

    def forward(self, x):
        return self.out(self.filters(x).square().mean(dim=-1).log1p())


settings = {"lr": 0.01, "max_epochs": 100, "tol": None, "random_state": 0}
convolution = TorchRegressor(Waves, standardize="target", batch_size=50, **settings)
convolution.fit(X[train], y[train])

flat = X.reshape(len(X), -1)
linear = TorchLinearRegressor().fit(flat[train], y[train])
network = TorchMLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, **settings)
network.fit(flat[train], y[train])

print(f"{'R2 on the test rows':28}")
models = {"linear": (linear, flat), "network": (network, flat), "convolution": (convolution, X)}
for name, (model, rows) in models.items():
    n_parameters = sum(p.numel() for p in model.module_.parameters())
    print(f"{name:12} {model.score(rows[test], y[test]):6.3f}   {n_parameters:5} parameters")

# %%
# Its constructor's arguments are hyperparameters like any other.
grid = {"module__n_filters": [4, 16], "lr": [0.003, 0.03]}
short = clone(convolution).set_params(max_epochs=20)
search = GridSearchCV(short, grid, cv=2).fit(X[train], y[train])
print("best of the grid:", search.best_params_)


# %%
# A loss with a parameter: the logarithm of the variance of the noise. It is trained with the
# module, and found in the fitted criterion.
class Uncertain(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_var = nn.Parameter(torch.zeros(1))

    def forward(self, prediction, target):
        squares = (prediction - target).square()
        return (squares * torch.exp(-self.log_var) + self.log_var).mean()


uncertain = clone(convolution).set_params(loss=Uncertain, standardize=False, max_epochs=200)
uncertain.fit(X[train], y[train])
learned = uncertain.net_.criterion_.module
noise = float((0.5 * learned.log_var.detach()).exp())
print(f"standard deviation learned by the loss: {noise:.3f} (of the noise in y: 0.200)")

# %%
fig, axes = plt.subplots(1, 3, figsize=(12.5, 4), layout="constrained")
left, middle, right = axes
for i, shift in zip((3, 8, 5), (0, 4, 8), strict=True):
    left.plot(time, waves[i] + shift)
    left.text(0.0, shift + 1.5, f"{frequency[i]:.1f} Hz")
left.set(title="Three rows", xlabel="time in seconds", yticks=[])
for name, (model, rows) in models.items():
    middle.plot(y[test], model.predict(rows[test]), ".", markersize=4, label=name)
middle.axline((2, 2), slope=1, color="grey", linewidth=1)
middle.set(title="Test rows", xlabel="measured frequency in Hz", ylabel="prediction in Hz")
middle.legend()
filters = convolution.module_.module.filters.weight.detach().numpy()[:, 0]
spectra = np.abs(np.fft.rfft(filters, n=128, axis=1))
right.plot(np.fft.rfftfreq(128, d=time[1]), spectra.T, linewidth=1)
right.set(title="Response of the filters", xlabel="frequency in Hz", xlim=(0, 16))
fig.savefig("your_own_module.png", dpi=120)
print("figure: your_own_module.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_your_own_module.png'
