"""Build a run from a configuration, and hold what it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config, ModelConfig, TrainConfig
from lepton_mpi.data.augmentation import make_augmentation
from lepton_mpi.data.dataset import Dataset, id_counts
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.loader import BatchCut, Loader
from lepton_mpi.data.normalisation import Normalisation, measure_normalisation
from lepton_mpi.data.sampler import Sampler
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.data.streams.loader import StreamLoader
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.family import DataShape, InputKind
from lepton_mpi.models.registry import choose_family_task
from lepton_mpi.monitor.metrics import MetricSums
from lepton_mpi.ops.product import Precision
from lepton_mpi.optim.groups import ParameterGroup, assign_groups
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.optim.registry import make_optimizer
from lepton_mpi.optim.schedule import decay_end
from lepton_mpi.parallel.exchange import Exchange
from lepton_mpi.parallel.extra_state import ExtraState
from lepton_mpi.runtime.device import select_device
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import ranks_on_node
from lepton_mpi.train.averaging import EMA_SLOT, start_average
from lepton_mpi.train.compression import warmup_steps
from lepton_mpi.train.exchange_choice import make_exchange
from lepton_mpi.train.inference import inference_loader, wants_inputs
from lepton_mpi.train.network import Network, build_network, choose_shape, declare_model
from lepton_mpi.train.objective import make_loss, make_metrics, make_preparation
from lepton_mpi.train.pipelining import choose_pipelining
from lepton_mpi.train.step import Training
from lepton_mpi.train.virtual_grid import choose_virtual_grid


class _Part(TypedDict):
    """Which part of which batches a rank takes; the same for all kinds of loaders."""

    global_batch: int
    cut: BatchCut
    input_kind: InputKind
    want_inputs: bool
    want_labels: bool


@dataclass(frozen=True)
class Engine:
    """What trains, before it is given any data.

    Attributes:
        network: the model on its grid.
        exchange: sums gradients over the data axis.
        optimizer: updates slices.
        groups: how each parameter is updated, by name.
    """

    network: Network
    exchange: Exchange
    optimizer: Optimizer
    groups: dict[str, ParameterGroup]

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
        num_train_samples: samples of the training set.
    """

    config: Config
    training: Training
    normalisation: Normalisation
    test_loader: Loader | None
    num_train_samples: int

    @property
    def network(self) -> Network:
        """The model on its grid."""
        return self.training.network

    @property
    def extras(self) -> tuple[ExtraState, ...]:
        """State beside parameters and optimizer slots, which checkpoints hold too."""
        return self.training.exchange.extra_states

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
    if (train_set.num_samples == 0 and splits.stream is None) or (train_set.label_kind == "class" and train_set.num_classes < 2):
        raise DataError(
            f"{train_set.name}: expected samples of at least 2 classes to train on, found {train_set.num_samples} "
            f"sample(s) of {train_set.num_classes} class(es): check the labels, or set data.num_classes"
        )
    engine = build_engine(world, config, describe_data(world, config.model, train_set, test_set))
    return attach_data(engine, config, splits, measure_inputs(engine.network, config.data.normalise, train_set))


@collective("world")
def describe_data(world: MPI.Intracomm, config: ModelConfig, train_set: Dataset, test_set: Dataset) -> DataShape:
    """Return what a model must know of the data.

    Collective over world.
    """
    counts: tuple[int, ...] = ()
    family, task = choose_family_task(config)
    if family.input_kind == "ids" and not isinstance(train_set, TokenWindows):
        pairs = [id_counts(dataset, world) for dataset in (train_set, test_set) if dataset.num_samples]
        counts = tuple(max(columns) for columns in zip(*pairs, strict=True))
    num_classes = max(train_set.num_classes, test_set.num_classes)
    if task.name == "classification" and train_set.label_shape:
        raise DataError(
            f"{train_set.name}: expected one class a sample, found labels of shape {train_set.label_shape} each: give class "
            "numbers, or set model.task (segmentation, regression, binary)"
        )
    return DataShape(train_set.input_shape, num_classes, train_set.label_shape, counts)


@collective("grid.world")
def measure_inputs(network: Network, how: str, train_set: Dataset) -> Normalisation:
    """Return how the inputs of a model are normalised; ids are left as they are.

    Collective over grid.world.
    """
    if network.model.input_kind == "ids" or train_set.num_samples == 0:
        return Normalisation.identity(train_set.input_shape)
    return measure_normalisation(train_set, how, network.grid.world)


@collective("world")
def build_engine(world: MPI.Intracomm, config: Config, data: DataShape) -> Engine:
    """Put the model and the optimizer of a configuration on the grid, with fresh weights.

    Collective over world.

    Args:
        world: all ranks.
        config: the checked configuration.
        data: what the data look like.

    Raises:
        LeptonError: the configuration does not fit ranks or machine; on all ranks alike.
    """
    model = declare_model(config.model, data)
    groups = assign_groups(config.optimizer, model.parameters)
    shape = choose_shape(config.grid, model, world.Get_size())
    xp = choose_device(world, config.run.device)
    micro_batches = choose_micro_batches(config.train, shape, model.batch_statistics)
    precision = read_precision(config.train.precision)
    pipelining = choose_pipelining(world, config, model, shape, micro_batches, xp, precision)
    optimizer = make_optimizer(config.optimizer)
    slots = (*optimizer.slot_names, EMA_SLOT) if config.train.ema_decay else optimizer.slot_names
    network = build_network(
        world,
        shape,
        config.grid.ranks_per_node,
        model,
        slots,
        config.reduce.bucket_mib,
        xp,
        seed=config.train.seed,
        precision=precision,
        shard="data" if config.optimizer.shard == "data" else "node",
        pipelining=pipelining,
        virtual=choose_virtual_grid(config, model, shape),
        sequence=config.grid.sequence,
    )
    network.memory.initialise(network.grid, config.train.seed)
    network.memory.add_rank_slots(optimizer.rank_slot_names)
    start_average(network)
    return Engine(network, make_exchange(network, config.reduce, config.optimizer.name, config.train.seed), optimizer, groups)


def attach_data(engine: Engine, config: Config, splits: DataSplits, normalisation: Normalisation) -> Run:
    """Return a run that trains an engine on data. Local.

    Several runs may follow each other on one engine: weights and optimizer state are the engine's.

    Args:
        engine: what trains.
        config: its configuration; the sections `data` and `train` may differ from run to run.
        splits: training and test set.
        normalisation: what is done to their inputs.

    Raises:
        ConfigError: the configuration does not fit the task.
    """
    network, train_set, test_set = engine.network, splits.train, splits.test
    grid, model = network.grid, network.model
    preparation = make_preparation(model, config.data)
    part: _Part = {
        "global_batch": config.train.global_batch,
        "cut": BatchCut(
            grid.data_index,
            grid.shape.data,
            choose_micro_batches(config.train, grid.shape, model.batch_statistics),
            config.train.virtual_shards if config.train.reproducible else 0,
        ),
        "input_kind": model.input_kind,
        "want_inputs": wants_inputs(network),
        "want_labels": grid.is_last_stage,
    }
    loader: Loader | StreamLoader
    if splits.stream is not None:
        loader, epoch_steps = StreamLoader(splits.stream, normalisation, **part), 0
    else:
        loader = Loader(
            train_set,
            Sampler(train_set.num_samples, config.train.seed),
            normalisation,
            augmentation=make_augmentation(config.data, model, config.model.channels, train_set.num_samples, config.train.seed),
            seed=config.train.seed,
            preparation=preparation,
            **part,
        )
        epoch_steps = config.train.epochs * loader.steps_per_epoch
    num_steps = config.train.steps or epoch_steps
    decay_step = decay_end(config.optimizer, epoch_steps, num_steps)
    optimizer = engine.optimizer.for_steps(decay_step)
    training = Training(
        network=network,
        exchange=engine.exchange,
        optimizer=optimizer,
        optimizer_config=config.optimizer,
        groups=engine.groups,
        loss=make_loss(model, config.train, network.place),
        ema_decay=config.train.ema_decay,
        loader=loader,
        num_steps=num_steps,
        decay_step=decay_step,
        warmup_steps=warmup_steps(config.reduce, optimizer, config.optimizer.name, decay_step),
    )
    tested = test_set.num_samples > 0 and (test_set.label_kind != "none" or model.task.labels == "none")
    _check_watching(config, make_metrics(model), tested)
    judged = make_preparation(model, config.data, "evaluate")
    test_loader = inference_loader(network, test_set, normalisation, judged) if tested else None
    return Run(config, training, normalisation, test_loader, train_set.num_samples)


def _check_watching(config: Config, metrics: MetricSums, tested: bool) -> None:
    """Refuse to watch a metric that the task has not, or that is never measured. Local.

    Raises:
        ConfigError: names the keys.
    """
    if config.train.metric and config.train.metric not in metrics.names:
        raise ConfigError(
            f"train.metric: expected one of the task's metrics, {', '.join(metrics.names)}, got {config.train.metric!r}"
        )
    for name, wanted in (("train.patience", config.train.patience > 0), ("checkpoint.keep_best", config.checkpoint.keep_best)):
        if wanted and not tested:
            raise ConfigError(f"{name}: there is no test set to tell by what is better: give data.test_path or data.test_fraction")


def read_precision(name: str) -> Precision:
    """Return the precision of a configuration, whose name was checked when it was read. Local."""
    return "bf16" if name == "bf16" else "fp32"


def choose_micro_batches(config: TrainConfig, shape: GridShape, batch_statistics: bool) -> int:
    """Return into how many micro-batches a batch is cut. Local, pure.

    Unless configured, twice as many as there are stages: the pipeline then idles for at most a third of
    a step (its bubble is (stages - 1) / (micro_batches + stages - 1), Narayanan et al. 2021), while
    the pieces stay large. A part with fewer samples is cut into single ones. A model that looks at the statistics
    of a micro-batch gets one, on every grid: another number would be another model.
    """
    if config.micro_batches:
        return config.micro_batches
    local = -(-config.global_batch // shape.data)
    return min(2 * shape.stages, local) if shape.stages > 1 and not batch_statistics else 1


@collective("world")
def choose_device(world: MPI.Intracomm, kind: str) -> object:
    """Return the array module of a device. Collective over world, since some ranks may find none.

    Raises:
        ConfigError: a rank has no such device; on all ranks alike.
    """
    return do_on_all(world, lambda: select_device(kind, world.Get_rank() % max(ranks_on_node(), 1)))
