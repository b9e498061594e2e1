"""Recommender: how much a user likes an item.

Sources: Koren, Bell, Volinsky, "Matrix factorization techniques for recommender systems", IEEE Computer 2009; He, Liao, Zhang,
Nie, Hu, Chua, "Neural collaborative filtering", WWW 2017.
"""

from __future__ import annotations

from typing import ClassVar, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, Family, InputKind, ModelSpec
from lepton_mpi.models.mlp import dense_layers
from lepton_mpi.models.task import Task
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.interaction import DotProduct, PairEmbedding
from lepton_mpi.nn.layer import Layer

_DEFAULT_EMBEDDING_SIZE = 32


@final
class Recommender(Family):
    """Embeddings of `embedding_size` (32) features for `num_users` users and `num_items` items, joined by `interaction`.

    "product": dot product of both, plus biases of the user, of the item and of all (matrix factorisation). "mlp": both
    one after the other, through fully connected layers of `hidden_sizes` with ReLU to one score (section 3.3 of He et al.).

    Samples are two columns, user and item, numbered from 0; `num_users` and `num_items` 0 are as the data have. With the task
    "ranking" the loader adds a second item, and the output is the score of both. Shards hold rows of the tables and divide the
    fully connected layers in pairs.
    """

    tasks: ClassVar[tuple[str, ...]] = ("regression", "binary", "ranking")
    input_kind: ClassVar[InputKind] = "ids"

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        if data.input_shape != (2,):
            raise ConfigError(
                f"model.family recommender: expected samples of two columns (user, item), got shape {data.input_shape}"
            )
        if data.num_outputs != 1:
            raise ConfigError(
                f"model.family recommender: it gives one score a pair, but the labels have {data.num_outputs} values or classes"
            )
        num_users = _count("model.num_users", config.num_users, data.id_counts[:1])
        num_items = _count("model.num_items", config.num_items, data.id_counts[1:2])
        size = config.embedding_size or _DEFAULT_EMBEDDING_SIZE
        product = config.interaction == "product"
        pairs = 2 if task.name == "ranking" else 1
        embed = PairEmbedding("pairs", num_users, num_items, size, pairs, biases=product)
        score = (DotProduct("score", size, biases=True),) if product else _dense(2 * size, config.hidden_sizes)
        sizes = "" if product else f" {'-'.join(map(str, (2 * size, *config.hidden_sizes, 1)))}"
        summary = f"recommender {config.interaction}{sizes}, {num_users} users, {num_items} items, {size} features"
        return ModelSpec("recommender", task, data, (embed, *score), input_kind="ids", summary=summary)


def _count(key: str, configured: int, found: tuple[int, ...]) -> int:
    """Return how many users or items there are.

    Raises:
        ConfigError: nobody says, or the data have more than the configuration says.
    """
    in_data = found[0] if found else 0
    if not configured and not in_data:
        raise ConfigError(f"{key}: the data do not say how many there are; set it to one more than the largest number")
    if configured and in_data > configured:
        raise ConfigError(f"{key}: the data have numbers up to {in_data - 1}, so it must be at least {in_data}, got {configured}")
    return configured or in_data


def _dense(num_inputs: int, hidden_sizes: tuple[int, ...]) -> tuple[Layer, ...]:
    """Declare the fully connected layers to one score."""
    *layers, last = dense_layers("layers", (num_inputs, *hidden_sizes, 1), flatten=False)
    return (*layers, Chain(last.name, (last, Flatten("scores"))))  # [P, 1] to [P]
