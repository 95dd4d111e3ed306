"""Modules as users write them, importable, so that they can be pickled."""

import torch
from torch import nn


class Net(nn.Module):
    """One hidden layer: what ``TorchMLPRegressor(hidden_layer_sizes=(16,))`` is."""

    def __init__(self, n_features, n_outputs, width=16):
        super().__init__()
        self.hidden = nn.Linear(n_features, width)
        self.out = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


class OneLinear(nn.Module):
    """The first reference workflow: one linear layer in a class."""

    def __init__(self, input_dim, output_dim):
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim)

    def forward(self, x):
        return self.linear(x)


class ThreeOfEight(nn.Module):
    """The fourth reference workflow: three hidden layers of eight."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc4 = nn.Linear(8, 1)

    def forward(self, x):
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        return self.fc4(torch.relu(self.fc3(x)))


class BatchNormed(nn.Module):
    def __init__(self, n_features, n_outputs, width=16):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, width),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, n_outputs),
        )

    def forward(self, x):
        return self.body(x)


class InPlace(nn.Module):
    """Writes into its input."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, x):
        x.mul_(2.0)
        x += 1.0
        return self.linear(x)


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.a, self.b = nn.Linear(n_features, n_features), nn.Linear(n_features, n_features)
        self.b.weight = self.a.weight
        self.out = nn.Linear(n_features, n_outputs)

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class FrozenFirst(nn.Module):
    """A first layer that is not trained."""

    def __init__(self, n_features, n_outputs, width=32):
        super().__init__()
        self.first, self.out = nn.Linear(n_features, width), nn.Linear(width, n_outputs)
        self.first.requires_grad_(False)

    def forward(self, x):
        return self.out(torch.tanh(self.first(x)))


class Dropped(nn.Module):
    """Dropout, and an output without a dimension of targets."""

    def __init__(self, n_features, width=32, p=0.2):
        super().__init__()
        self.hidden, self.out, self.p = nn.Linear(n_features, width), nn.Linear(width, 1), p

    def forward(self, x):
        h = torch.nn.functional.dropout(torch.tanh(self.hidden(x)), self.p, self.training)
        return self.out(h).squeeze()


class Recurrent(nn.Module):
    """An LSTM over (n_steps, 3)."""

    def __init__(self, size=8, cls=nn.LSTM):
        super().__init__()
        self.cells, self.out = cls(3, size, batch_first=True), nn.Linear(size, 1)

    def forward(self, x):
        return self.out(self.cells(x)[0][:, -1])


class Convolutional(nn.Module):
    """A convolution over (7, 3), then a lazy layer."""

    def __init__(self, n_outputs=1):
        super().__init__()
        self.conv, self.out = nn.Conv1d(7, 6, 2), nn.LazyLinear(n_outputs)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).flatten(1))


class Embedded(nn.Module):
    """Embeddings of integer codes."""

    def __init__(self, n_codes=10, sparse=False):
        super().__init__()
        self.codes = nn.Embedding(n_codes, 4, sparse=sparse)
        self.out = nn.LazyLinear(1)

    def forward(self, x):
        return self.out(self.codes(x).flatten(1))


class Mixed(nn.Module):
    """A column of codes and columns of numbers in one matrix of floats."""

    def __init__(self, n_features, n_codes=5):
        super().__init__()
        self.codes = nn.Embedding(n_codes, 3)
        self.out = nn.Linear(n_features - 1 + 3, 1)

    def forward(self, x):
        return self.out(torch.cat([self.codes(x[:, 0].long()), x[:, 1:]], 1))


class LazyThroughout(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1)
        )

    def forward(self, x):
        return self.body(x)


class MadeInForward(nn.Module):
    """Its last layer is made by the first call, as in some tutorials."""

    def __init__(self):
        super().__init__()
        self.out = None

    def forward(self, x):
        if self.out is None:
            self.out = nn.Linear(x.shape[1], 1)
        return self.out(x)


class SlowAverage(nn.Module):
    """Its prediction depends on a buffer that training replaces in each step."""

    def __init__(self, n_features):
        super().__init__()
        self.linear = nn.Linear(n_features, 1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        out = self.linear(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * out.detach().mean()
            self.n_steps += 1
        return out + self.mean


def two_layers(n_features, n_outputs, width=16):
    """A function that makes a module."""
    return nn.Sequential(nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, n_outputs))


class Uncertain(nn.Module):
    """Squared error with a variance that is learned, and a count of its calls in training."""

    def __init__(self, start=0.0):
        super().__init__()
        self.log_var = nn.Parameter(torch.full((1,), float(start)))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, prediction, target):
        if self.training:
            self.calls += 1
        return ((prediction - target) ** 2 * torch.exp(-self.log_var) + self.log_var).mean()


class UncertainByRow(nn.Module):
    """As `Uncertain`, one value per row."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        self.log_var = nn.Parameter(torch.zeros(1))

    def forward(self, prediction, target):
        values = (prediction - target) ** 2 * torch.exp(-self.log_var) + self.log_var
        return values if self.reduction == "none" else values.mean()


class Gaussian(nn.Module):
    """Looks at two columns together: a mean, and the logarithm of a variance."""

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, prediction, target):
        mean, log_var = prediction[:, 0], prediction[:, 1] + self.offset
        return ((mean - target[:, 0]) ** 2 * torch.exp(-log_var) + log_var).mean()


def train_in_order(net, x, t, *, lr, n_epochs, batch_size=None, loss=None):
    """The loop of a tutorial with Adam, over rows in their order."""
    loss = nn.MSELoss() if loss is None else loss
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(n_epochs):
        for part in torch.arange(len(x)).split(batch_size or len(x)):
            optimizer.zero_grad()
            loss(net(x[part]), t[part]).backward()
            optimizer.step()
    return net
