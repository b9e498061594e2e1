"""Small models of all families, with odd sizes."""

from __future__ import annotations

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape

TEXT = DataShape((11,), num_classes=37)
TRANSFORMER = {"num_layers": 2, "context": 11}
PAIRS = DataShape((2,), label_shape=(1,), id_counts=(7, 13))

FAMILIES: dict[str, tuple[ModelConfig, DataShape]] = {
    "linear": (ModelConfig("linear"), DataShape((3, 5), num_classes=4)),
    "mlp": (ModelConfig("mlp", hidden_sizes=(13, 7)), DataShape((3, 5), num_classes=4)),
    "mlp-binary": (ModelConfig("mlp", task="binary", hidden_sizes=(3,)), DataShape((5,), label_shape=(2,))),
    "resnet": (ModelConfig("resnet", depth=20, width=3), DataShape((9, 11), num_classes=5)),
    "resnet-18": (ModelConfig("resnet", depth=18, width=2, channels="first"), DataShape((3, 37, 35), num_classes=5)),
    "unet": (ModelConfig("unet", depth=3, width=2), DataShape((3, 8, 12), num_classes=3, label_shape=(8, 12))),
    "unet-last": (
        ModelConfig("unet", depth=2, width=3, channels="last"),
        DataShape((6, 4, 3), num_classes=3, label_shape=(6, 4)),
    ),
    "gpt": (ModelConfig("gpt", width=20, num_heads=5, dropout=0.1, **TRANSFORMER), TEXT),
    "llama": (ModelConfig("llama", width=24, num_heads=6, num_kv_heads=2, intermediate_size=35, **TRANSFORMER), TEXT),
    "bert": (
        ModelConfig("bert", width=15, num_heads=3, pad_token=1, **TRANSFORMER),
        DataShape((11,), num_classes=5, id_counts=(37,)),
    ),
    "bert-masked": (ModelConfig("bert", task="masked_language_model", width=15, num_heads=3, pad_token=1, **TRANSFORMER), TEXT),
    "recommender-mlp": (ModelConfig("recommender", embedding_size=5, hidden_sizes=(7, 3)), PAIRS),
    "recommender-product": (ModelConfig("recommender", embedding_size=5, interaction="product"), PAIRS),
    "recommender-ranking": (ModelConfig("recommender", task="ranking", embedding_size=5, interaction="product"), PAIRS),
}
