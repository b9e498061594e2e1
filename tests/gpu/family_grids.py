"""How the families of tests/jobs/small_data.py are trained here."""

# Grids that move device arrays in all ways there are: of the families that admit them, and of all others.
_GRIDS = {
    "mlp": "1x2x2",
    "resnet": "2x1x2",
    "unet": "2x2x1",
    "gpt": "1x2x2",
    "llama": "1x1x2",
    "bert": "1x2x1",
    "bert-masked": "2x1x2",
    "recommender": "1x2x2",
    "ranking": "1x1x2",
}
_OTHER = "2x1x1"

# AdamW divides a gradient by its own size: one that is zero but for rounding, as a bias's on balanced classes, would take a
# step of full size in a direction that the device decides.
PLAIN = ("--optimizer.name", "sgd")


def grid_of(name: str) -> str:
    """Return the grid of a case, as data x stages x shards."""
    return _GRIDS.get(name, _OTHER)
