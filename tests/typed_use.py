"""A file of a user's, which mypy and pyright have to pass as it stands; CI checks it with both."""

import numpy as np

from sktorch_linreg import (
    BatchedGridSearchCV,
    LossCurveDisplay,
    TorchLinearRegressor,
    TorchMLPRegressor,
    TrainingDivergedError,
    load_model,
    lr_range_test,
    save_model,
)
from sktorch_linreg.distributed import data_parallel
from sktorch_linreg.interop import to_onnx

X = np.zeros((10, 2))
y = np.zeros(10)
model = TorchLinearRegressor(alpha=0.1, optimizer="adam", optimizer__betas=(0.8, 0.9)).fit(X, y)
score: float = model.score(X, y)
coef = np.asarray(model.coef_)
network: TorchMLPRegressor = TorchMLPRegressor(hidden_layer_sizes=(4,)).fit(X, y)
search = BatchedGridSearchCV(network, {"lr": [0.1, 0.01]}, max_memory=10**9).fit(X, y)
print(search.best_params_, score, coef.shape)
LossCurveDisplay.from_estimator(network).plot()
found = lr_range_test(network, X, y)
rate: float = found.suggested_lr
with data_parallel() as processes:
    mine = slice(processes.rank, None, processes.size)
    shared = TorchLinearRegressor(lr=rate).fit(X[mine], y[mine], sample_weight=None)
print(shared.n_iter_ + 1, shared.to_sklearn().predict(X))
to_onnx(shared, "model.onnx", dtype="float64")
try:
    save_model(model, "model.safetensors")
    again = load_model("model.safetensors")
    print(again.predict(X))
except TrainingDivergedError as error:
    print(error.epoch + 1, error.lr)
