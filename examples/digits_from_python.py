"""Train from Python, on the digits that ship with the package; alone, or with more ranks:

python examples/digits_from_python.py
mpirun -n 4 python examples/digits_from_python.py
"""

from lepton_mpi import LeptonModel  # before NumPy, so that the ranks of a node share its cores

# isort: split
import numpy as np

from lepton_mpi.data.formats.digits import open_digits

x, y = open_digits().read(np.arange(1797))  # float32 [1797, 8, 8], int64 [1797]

with LeptonModel(input_shape=(8, 8), num_classes=10, hidden_size=128, num_layers=3) as model:
    model.fit(x[:1400], y[:1400], epochs=20, validation_data=(x[1400:], y[1400:]))
    metrics, classes = model.evaluate(x[1400:], y[1400:]), model.predict(x[1400:])
    model.save("digits-model")  # for model.load, and python -m lepton_mpi predict digits-model FILE
    if model.rank == 0:
        print(f"accuracy {metrics.accuracy:.4f}, F1 {metrics.f1:.4f}, first predictions {classes[:10]}")
