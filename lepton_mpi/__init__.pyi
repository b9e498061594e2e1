from lepton_mpi.train.model import LeptonModel as LeptonModel

__version__: str
