"""Read the weights of a checkpoint with h5py alone; nothing of lepton_mpi is needed.

    python examples/read_checkpoint.py runs/NAME/checkpoints/step-000000100/data.h5

Shows in lines what `h5dump -A -r data.h5` shows. The digests are not compared: `python -m lepton_mpi verify` does that.
"""

import sys

import h5py

with h5py.File(sys.argv[1], "r") as data:
    print(f"step {data['meta'].attrs['step']}, written by {data['meta'].attrs['writer'].decode()}")
    weights = {name: tensor[...] for name, tensor in data["param"].items()}
    print("\n".join(f"{name}: {array.shape}, {array.dtype}, mean {array.mean():.6f}" for name, array in weights.items()))
