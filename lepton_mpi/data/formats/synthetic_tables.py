"""Made tables: points of clusters, a linear law, credits, ratings, and texts of several topics.

Shapes: B samples asked for.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.formats.synthetic_kind import SyntheticKind, check_shape, draw_normal, draw_uniform
from lepton_mpi.errors import ConfigError

_TOKENS = 64  # of which texts are made; 0 starts every text
_TOPIC_TOKENS = 8  # tokens that texts of a topic prefer
_TOPIC_SHARE = 0.3
_RANK = 4  # features of users and items that ratings follow from
_CANDIDATES = 3  # items of which a user takes the best, where there are no ratings
_CREDIT_FEATURES = 10


@final
class Blobs(SyntheticKind):
    """Normal clusters of points, one a class; float32.

    Args:
        shape: [features]; empty: 8.
        num_classes: number of classes; 0: 4.

    Raises:
        ConfigError: a shape of another number of dims.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.input_shape = check_shape("blobs", shape, (8,), "the number of features")
        self.num_classes = num_classes or 4
        self._centres = 1.5 * draw_normal("blob centre", np.arange(self.num_classes), self.input_shape[0])

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        points = self._centres[self.labels(indices)] + draw_normal("blob", indices, self.input_shape[0])
        return points.astype(np.float32)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.floor(draw_uniform("blob class", indices, 1)[:, 0] * self.num_classes).astype(np.int64)


@final
class LinearRegression(SyntheticKind):
    """Points whose label is a linear function of the features, plus normal noise of a tenth; float32.

    Args:
        shape: [features]; empty: 8.
        num_classes: 0.

    Raises:
        ConfigError: a shape of another number of dims, or classes.
    """

    noise = 0.1

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.input_shape = check_shape("regression", shape, (8,), "the number of features")
        _refuse_classes("regression", num_classes)
        self.weights = draw_normal("regression weights", np.zeros(1, np.int64), self.input_shape[0])[0]

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return draw_normal("regression", indices, self.input_shape[0]).astype(np.float32)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        noise = draw_normal("regression noise", indices, 1)[:, 0]
        # A sum a row, not a matrix product: its rounding may depend on the rows beside it.
        means: NDArray[np.float64] = (self.inputs(indices).astype(np.float64) * self.weights).sum(axis=1)
        return (means + 0.5 + self.noise * noise).astype(np.float32)


@final
class Credit(SyntheticKind):
    """Credits that are paid back (0) or not (1); float32.

    The features are income (log-normal), loan, their ratio, age, years employed, late payments (a count), open credits (a
    count), owning a home (0 or 1), and two that say nothing. The label is 1 with the probability that `risk` gives, so that
    no model can do better in the mean than to return `risk`.

    Args:
        shape: empty, or [10].
        num_classes: 2; 0: 2.

    Raises:
        ConfigError: another shape or number of classes.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.input_shape = check_shape("credit", shape, (_CREDIT_FEATURES,), f"{_CREDIT_FEATURES} features")
        if self.input_shape != (_CREDIT_FEATURES,) or num_classes not in (0, 2):
            raise ConfigError(
                f"data.synthetic credit has {_CREDIT_FEATURES} features and 2 classes, got data.synthetic_shape = {list(shape)} "
                f"and data.num_classes = {num_classes}: leave both out"
            )
        self.num_classes = 2

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        u, z = draw_uniform("credit", indices, 8), draw_normal("credit", indices, 4)
        income, loan = 30 * np.exp(0.5 * z[:, 0]), 20 * np.exp(0.7 * z[:, 1])
        age = 20 + 50 * u[:, 0]
        employed = np.floor((age - 18) * u[:, 1])
        late, credits = np.floor(-1.5 * np.log(1 - u[:, 2])), np.floor(6 * u[:, 3] ** 2)
        owner = u[:, 4] < 0.2 + 0.6 * (age > 40)
        columns = [income, loan, loan / income, age, employed, late, credits, owner, z[:, 2], u[:, 5]]
        return np.stack(columns, axis=1).astype(np.float32)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        drawn = draw_uniform("credit label", indices, 1)[:, 0]
        return (drawn < self.risk(self.inputs(indices))).astype(np.int64)

    def risk(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability of a label of 1, float64[B], for inputs as `inputs` returns them. Local."""
        _, _, ratio, age, employed, late, credits, owner = inputs[:, :8].astype(np.float64).T
        score = -2.2 + 1.2 * np.log(ratio / 0.7) + 0.8 * np.minimum(late, 4) - 0.06 * employed - 0.7 * owner
        score += 0.5 * np.abs(age - 45) / 25 + 0.4 * np.maximum(credits - 2, 0)
        probability: NDArray[np.float64] = 1 / (1 + np.exp(-score))
        return probability


@final
class Ratings(SyntheticKind):
    """Pairs of user and item, int32[2]; the label is the rating, 0.5 .. 5 in halves, from a model of rank 4 and noise.

    The item of a sample is the one of three at random that the user likes best, so that a model can learn, without ratings,
    what users prefer.

    Args:
        shape: [users, items]; empty: 200 and 100.
        num_classes: 0.

    Raises:
        ConfigError: a shape of another number of dims, or classes.
    """

    input_shape = (2,)

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.num_users, self.num_items = check_shape("ratings", shape, (200, 100), "the numbers of users and items")
        _refuse_classes("ratings", num_classes)
        self._users = draw_normal("users", np.arange(self.num_users), _RANK)
        self._items = draw_normal("items", np.arange(self.num_items), _RANK)

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        u = draw_uniform("rating", indices, 1 + _CANDIDATES)
        users = np.floor(u[:, 0] * self.num_users).astype(np.int32)
        items = np.floor(u[:, 1:] * self.num_items).astype(np.int32)
        best = self._liking(users[:, None], items).argmax(axis=1)
        return np.stack([users, np.take_along_axis(items, best[:, None], axis=1)[:, 0]], axis=1)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        users, items = self.inputs(indices).T
        rating = 2.7 + 0.5 * self._liking(users, items) + 0.25 * draw_normal("rating noise", indices, 1)[:, 0]
        return (np.clip(np.round(2 * rating), 1, 10) / 2).astype(np.float32)

    def _liking(self, users: NDArray[np.int32], items: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return how much users like items, in the broadcast shape of both."""
        liking: NDArray[np.float64] = (self._users[users] * self._items[items]).sum(axis=-1)
        return liking


@final
class TopicTokens(SyntheticKind):
    """Texts of 64 tokens, uint8[tokens]; a class is a topic, which prefers eight of the tokens. Token 0 starts each text.

    Args:
        shape: [tokens of a text]; empty: 32.
        num_classes: number of topics; 0: 4.

    Raises:
        ConfigError: a shape of another number of dims.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.input_shape = check_shape("tokens", shape, (32,), "the tokens of a text")
        self.num_classes = num_classes or 4
        order = np.argsort(draw_uniform("topic", np.arange(self.num_classes), _TOKENS - 1), axis=1)
        self._preferred = 1 + order[:, :_TOPIC_TOKENS]

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        length = self.input_shape[0]
        chosen, drawn = draw_uniform("topic or not", indices, length), draw_uniform("token", indices, length)
        anything = 1 + np.floor(drawn * (_TOKENS - 1)).astype(np.int64)
        place = np.floor(drawn * _TOPIC_TOKENS).astype(np.int64)
        preferred = np.take_along_axis(self._preferred[self.labels(indices)], place, axis=1)
        tokens = np.where(chosen < _TOPIC_SHARE, preferred, anything).astype(np.uint8)
        tokens[:, 0] = 0
        return tokens

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.floor(draw_uniform("topic class", indices, 1)[:, 0] * self.num_classes).astype(np.int64)


def _refuse_classes(kind: str, num_classes: int) -> None:
    if num_classes:
        raise ConfigError(
            f"data.num_classes: data.synthetic {kind} has values as labels, no classes, got {num_classes}; leave it at 0"
        )
