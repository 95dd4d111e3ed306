"""
Replace LinearRegression, and search learning rates
===================================================

Change one import and existing code keeps working: same scores, same coefficients. Give the
same estimator a learning rate and it trains in PyTorch, inside a Pipeline and a GridSearchCV.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sktorch_linreg import TorchLinearRegressor

# %%
# Ten measurements of 442 diabetes patients, in their original units.
data = load_diabetes(scaled=False)
X_train, X_test, y_train, y_test = train_test_split(data.data, data.target, random_state=0)


def pipeline(regressor):
    return Pipeline([("scale", StandardScaler()), ("regressor", regressor)])


# %%
# The drop-in replacement, and a search over learning rates of the same estimator with Adam.
rates = np.geomspace(1e-4, 1.0, 9)
search = GridSearchCV(
    pipeline(TorchLinearRegressor(optimizer="adam", max_epochs=100, random_state=0)),
    {"regressor__lr": rates},
    cv=5,
).fit(X_train, y_train)
models = {
    "LinearRegression": pipeline(LinearRegression()).fit(X_train, y_train),
    "TorchLinearRegressor()": pipeline(TorchLinearRegressor()).fit(X_train, y_train),
    f"... trained, lr={search.best_params_['regressor__lr']:.3g}": search.best_estimator_,
}

print(f"{'':28}{'train R2':>10}{'test R2':>10}{'5-fold R2':>11}")
for name, model in models.items():
    folds = cross_val_score(model, X_train, y_train, cv=5).mean()
    train, test = model.score(X_train, y_train), model.score(X_test, y_test)
    print(f"{name:28}{train:10.5f}{test:10.5f}{folds:11.5f}")

# %%
# Coefficients side by side. The blood values s1 to s6 are nearly collinear: a hundred epochs of
# Adam find different coefficients for them that predict equally well.
coefs = [model.named_steps["regressor"].coef_ for model in models.values()]
print(f"\n{'coefficient':14}{'sklearn':>12}{'exact':>12}{'trained':>12}")
for row in zip(data.feature_names, *coefs, strict=True):
    print(f"{row[0]:14}{row[1]:12.6f}{row[2]:12.6f}{row[3]:12.6f}")
print(f"\nlargest difference, exact against sklearn: {np.abs(coefs[1] - coefs[0]).max():.1e}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
mean = search.cv_results_["mean_test_score"]
spread = search.cv_results_["std_test_score"]
left.plot(rates, mean, "o-", label="trained by Adam, 100 epochs")
left.fill_between(rates, mean - spread, mean + spread, alpha=0.2, label="one standard deviation")
exact = cross_val_score(models["LinearRegression"], X_train, y_train, cv=5).mean()
left.axhline(exact, color="black", linestyle="--", label="LinearRegression")
left.set(xscale="log", xlabel="learning rate", ylabel="5-fold R2", title="Which learning rate?")
left.legend(loc="lower right")

position = np.arange(len(data.feature_names))
for i, (name, coef) in enumerate(zip(models, coefs, strict=True)):
    right.barh(position + 0.27 * (i - 1), coef, height=0.25, label=name)
right.set_yticks(position, data.feature_names)
right.invert_yaxis()
right.set(xlabel="coefficient of the scaled feature", title="Coefficients: the exact ones agree")
right.legend(loc="lower left", fontsize="small")
fig.savefig("replace_linear_regression.png", dpi=120)
print("figure: replace_linear_regression.png")
# sphinx_gallery_thumbnail_path = 'auto_examples/thumbnails/plot_replace_linear_regression.png'
