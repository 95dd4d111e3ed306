"""Parameters of the estimators: dunder options, get and set, validation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator

from .._errors import nearest
from .._runtime.processes import current_group
from .._runtime.python_numbers import as_python
from .._runtime.sklearn_private import InvalidParameterError, validate_parameter_constraints

# prefixes of options that are passed on: `optimizer__momentum` reaches the optimizer as `momentum`
PREFIXES = ("optimizer__", "loss__", "lr_schedule__")


class ParametersMixin(BaseEstimator):  # type: ignore[misc]
    """Constructor parameters, and additional options with a prefix."""

    _parameter_constraints: ClassVar[dict[str, Any]]
    _prefixes: ClassVar[tuple[str, ...]] = PREFIXES
    _options: dict[str, Any]

    # -- dunder options -------------------------------------------------------------------------

    def _set_options(self, options: Mapping[str, Any]) -> None:
        """Store the constructor's dunder options unchanged; other names raise a TypeError."""
        known = type(self)._get_param_names()
        for name in options:
            if not name.startswith(self._prefixes):
                raise TypeError(
                    f"{type(self).__name__} has no parameter {name!r}.{self._suggest(name, known)} "
                    f"Its parameters are {', '.join(known)}, and options that start with "
                    f"{', '.join(self._prefixes)}."
                )
        self._options = dict(options)

    def _suggest(self, name: str, known: Iterable[str]) -> str:
        """A sentence that suggests a parameter for an unknown name."""
        return nearest(name, known)

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name in options:
            return options[name]
        # look it up again, so that a property or an unavailable method says why it is missing
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith(self._prefixes):
            self._options = {**self._options, name: value}
        else:
            super().__setattr__(name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Get parameters, dunder options included.

        Parameters
        ----------
        deep : bool, default=True
            Accepted for compatibility; there are no nested estimators.

        Returns
        -------
        dict
            Parameter names mapped to their values.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> TorchLinearRegressor(optimizer__momentum=0.9).get_params()["optimizer__momentum"]
        0.9
        """
        params = {name: getattr(self, name) for name in self._get_param_names()}
        return {**params, **self._options}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, dunder options included.

        Parameters
        ----------
        **params : dict
            Parameters by name; ``optimizer__*``, ``loss__*`` and ``lr_schedule__*`` need not have
            been set before.

        Returns
        -------
        self : estimator
            This estimator.

        Raises
        ------
        ValueError
            If a name is not a parameter.

        Examples
        --------
        >>> from sktorch_linreg import TorchLinearRegressor
        >>> TorchLinearRegressor().set_params(optimizer="sgd", optimizer__momentum=0.9)
        TorchLinearRegressor(optimizer='sgd', optimizer__momentum=0.9)
        """
        known = self._get_param_names()
        for name in params:
            if name not in known and not name.startswith(self._prefixes):
                raise ValueError(
                    f"{type(self).__name__} has no parameter {name!r}.{self._suggest(name, known)} "
                    f"Valid parameters are {known}, and options that start with "
                    f"{', '.join(self._prefixes)}."
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def _options_of(self, prefix: str) -> dict[str, Any]:
        """Options with a prefix, by their names without it, with numbers as Python numbers."""
        named = {k: v for k, v in self._options.items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): as_python(v) for k, v in named.items()}

    @classmethod
    def _get_param_names(cls) -> list[str]:
        # scikit-learn inspects the signature on every call, which takes longer than a small fit
        return list(cls._param_names())

    @classmethod
    @cache
    def _param_names(cls) -> tuple[str, ...]:
        return tuple(super()._get_param_names())

    def _validate_params(self) -> None:
        """Check parameters, on all processes of a distributed fit."""
        current_group().run(self._check_params)

    def _check_params(self) -> None:
        """Check values that are not valid defaults; checking all takes longer than a small fit."""
        values = {name: getattr(self, name) for name in self._param_names()}
        known = self._valid_defaults()
        params = {k: v for k, v in values.items() if k not in known or v is not known[k]}
        validate_parameter_constraints(self._parameter_constraints, params, type(self).__name__)

    @classmethod
    @cache
    def _valid_defaults(cls) -> dict[str, Any]:
        valid = {}
        for name, parameter in inspect.signature(cls).parameters.items():
            with suppress(InvalidParameterError):
                default = {name: parameter.default}
                validate_parameter_constraints(cls._parameter_constraints, default, cls.__name__)
                valid.update(default)
        return valid

    def __delattr__(self, name: str) -> None:
        if name in self._options:
            self._options = {k: v for k, v in self._options.items() if k != name}
        else:
            super().__delattr__(name)
