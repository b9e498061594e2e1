"""Build a run from a configuration, and hold what it consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config, TrainConfig
from lepton_mpi.data.augmentation import choose_max_shift
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.normalisation import Normalisation, measure_normalisation
from lepton_mpi.data.sampler import Sampler
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.errors import DataError
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.optim.registry import make_optimizer
from lepton_mpi.optim.schedule import decay_end
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.runtime.device import select_device
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import is_oversubscribed, ranks_on_node
from lepton_mpi.train.inference import inference_loader
from lepton_mpi.train.network import Network, build_network, choose_shape, declare_model
from lepton_mpi.train.step import Training


@dataclass(frozen=True)
class Engine:
    """What trains, before it is given any data.

    Attributes:
        network: the model on its grid.
        exchange: sums gradients over the data axis.
        optimizer: updates slices.
    """

    network: Network
    exchange: GradientExchange
    optimizer: Optimizer

    @collective("grid.world")
    def free(self) -> None:
        """Give all communicators back.

        Collective over grid.world.
        """
        self.exchange.free()
        self.network.grid.free()


@dataclass(frozen=True)
class Run:
    """A run, ready to train.

    Attributes:
        config: the whole configuration.
        training: what a step works with.
        normalisation: how inputs are normalised.
        test_loader: batches of the test set, or None where there is none.
        input_shape: shape of a sample.
        num_train_samples: samples of the training set.
    """

    config: Config
    training: Training
    normalisation: Normalisation
    test_loader: Loader | None
    input_shape: tuple[int, ...]
    num_train_samples: int

    @property
    def network(self) -> Network:
        """The model on its grid."""
        return self.training.network

    @collective("grid.world")
    def free(self) -> None:
        """Give all communicators back.

        Collective over grid.world.
        """
        self.training.exchange.free()
        self.network.grid.free()


@collective("world")
def build_run(world: MPI.Intracomm, config: Config, splits: DataSplits) -> Run:
    """Put model, data and optimizer of a configuration on the grid, with fresh weights.

    Collective over world.

    Args:
        world: all ranks.
        config: the checked configuration.
        splits: training and test set.

    Raises:
        LeptonError: the configuration fits neither data nor ranks nor machine; on all ranks alike.
    """
    train_set, test_set = splits.train, splits.test
    if train_set.num_samples == 0 or train_set.num_classes < 2:
        raise DataError(
            f"{train_set.name}: expected samples of at least 2 classes to train on, found {train_set.num_samples} "
            f"sample(s) of {train_set.num_classes} class(es): check the labels, or set data.num_classes"
        )
    num_classes = max(train_set.num_classes, test_set.num_classes)
    engine = build_engine(world, config, train_set.input_shape, num_classes)
    normalisation = measure_normalisation(train_set, config.data.normalise, engine.network.grid.world)
    return attach_data(engine, config, splits, normalisation)


@collective("world")
def build_engine(world: MPI.Intracomm, config: Config, input_shape: tuple[int, ...], num_classes: int) -> Engine:
    """Put the model and the optimizer of a configuration on the grid, with fresh weights.

    Collective over world.

    Args:
        world: all ranks.
        config: the checked configuration.
        input_shape: shape of a sample.
        num_classes: number of classes.

    Raises:
        LeptonError: the configuration does not fit ranks or machine; on all ranks alike.
    """
    model = declare_model(config.model, math.prod(input_shape), num_classes)
    shape = choose_shape(config.grid, model, world.Get_size())
    xp = choose_device(world, config.run.device)
    optimizer = make_optimizer(config.optimizer)
    network = build_network(world, shape, config.grid.ranks_per_node, model, optimizer.slot_names, config.reduce.bucket_mib, xp)
    network.memory.initialise(network.grid, config.train.seed)
    spin = not is_oversubscribed()
    exchange = GradientExchange(network.grid, network.memory, config.reduce.mode, network.bounds, config.reduce.timeout_s, spin)
    return Engine(network, exchange, optimizer)


def attach_data(engine: Engine, config: Config, splits: DataSplits, normalisation: Normalisation) -> Run:
    """Return a run that trains an engine on data. Local.

    Several runs may follow each other on one engine: weights and optimizer state are the engine's.

    Args:
        engine: what trains.
        config: its configuration; the sections `data` and `train` may differ from run to run.
        splits: training and test set.
        normalisation: what is done to their inputs.
    """
    network, train_set, test_set = engine.network, splits.train, splits.test
    grid = network.grid
    loader = Loader(
        train_set,
        Sampler(train_set.num_samples, config.train.seed),
        normalisation,
        global_batch=config.train.global_batch,
        data_index=grid.data_index,
        data_size=grid.shape.data,
        micro_batches=choose_micro_batches(config.train, grid.shape),
        max_shift=choose_max_shift(config.data, train_set.input_shape),
        seed=config.train.seed,
        want_inputs=grid.is_first_stage,
        want_labels=grid.is_last_stage,
    )
    epoch_steps = config.train.epochs * loader.steps_per_epoch
    num_steps = config.train.steps or epoch_steps
    decay_step = decay_end(config.optimizer, epoch_steps, num_steps)
    training = Training(network, engine.exchange, engine.optimizer, config.optimizer, loader, num_steps, decay_step)
    tested = test_set.num_samples > 0 and test_set.num_classes > 0
    test_loader = inference_loader(network, test_set, normalisation) if tested else None
    return Run(config, training, normalisation, test_loader, train_set.input_shape, train_set.num_samples)


def choose_micro_batches(config: TrainConfig, shape: GridShape) -> int:
    """Return into how many micro-batches each data rank cuts its part of a batch. Local, pure.

    Unless configured, twice as many as there are stages: the pipeline then idles for at most a third of
    a step (its bubble is (stages - 1) / (micro_batches + stages - 1), Narayanan et al. 2021), while
    the pieces stay large. A part with fewer samples is cut into single ones.
    """
    if config.micro_batches:
        return config.micro_batches
    local = -(-config.global_batch // shape.data)
    return min(2 * shape.stages, local) if shape.stages > 1 else 1


@collective("world")
def choose_device(world: MPI.Intracomm, kind: str) -> object:
    """Return the array module of a device. Collective over world, since some ranks may find none.

    Raises:
        ConfigError: a rank has no such device; on all ranks alike.
    """
    return do_on_all(world, lambda: select_device(kind, world.Get_rank() % max(ranks_on_node(), 1)))
