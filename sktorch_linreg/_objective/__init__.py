r"""The objective: the loss over the rows plus the penalty on the weights.

Every solver of the package minimises exactly this over the weights :math:`W` and the intercepts:

.. math::

    \frac{\sum_i w_i \, \ell(y_i, f(x_i))}{\sum_i w_i}
    + \alpha \left( \rho \, \lVert W \rVert_1 + \frac{1 - \rho}{2} \lVert W \rVert_2^2 \right)

with the sample weights :math:`w_i`, ``alpha`` :math:`\alpha` and ``l1_ratio`` :math:`\rho`. The
loss :math:`\ell` of a row is the mean over its targets, squared error has no factor of one half,
and intercepts are never penalised. With ``standardize=True`` the features (and the target, where
the loss allows it) are in standard units, and so are the penalised weights.
"""
