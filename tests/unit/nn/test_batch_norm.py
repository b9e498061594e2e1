"""Batch normalisation over several data ranks and micro-batches, against PyTorch on the whole batch."""

import numpy as np
import pytest
from alone import build_alone, make_parameters
from threads_as_ranks import ThreadPlace, run_threads

from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.module import Context

LAYER = BatchNorm2d("norm", 3)


def run_ranks(micro_batches, num_global, dtype=np.float64):
    """Run micro_batches[m][rank] = (x, dy); return [(y, dx) of each], parameters for each rank."""

    def work(place: ThreadPlace):
        module, parameters = build_alone(LAYER, dtype, place)
        outputs = []
        for micro_batch in micro_batches:
            x, dy = micro_batch[place.data_rank]
            y, saved = module.forward(x.astype(dtype), Context(training=True, num_global=num_global))
            dx, pending = module.backward_input(dy.astype(dtype), saved)
            module.backward_weight(pending)
            outputs.append((y, dx))
        return outputs, parameters

    return run_threads(work, data=len(micro_batches[0]))


def draw(batch_size, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((batch_size, 3, 2, 3)) * 3 + 5, random.standard_normal((batch_size, 3, 2, 3))


def whole_batch_of_pytorch(x, dy):
    """Return y, dx, dweight, dbias, running mean and variance after one step."""
    torch = pytest.importorskip("torch")
    norm = torch.nn.BatchNorm2d(3, dtype=torch.float64)
    for name, parameter in make_parameters(LAYER).items():
        getattr(norm, name.removeprefix("norm.")).data.copy_(torch.tensor(parameter.value))
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    y = norm(images)
    y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    back = [tensor.detach().numpy().transpose(0, 2, 3, 1) for tensor in (y, images.grad)]
    return [*back, *(t.numpy() for t in (norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 3e-5)])
@pytest.mark.parametrize("cuts", [[], [2], [0, 3], [1, 1, 4]], ids=["one rank", "two", "first empty", "four, one empty"])
def test_ranks_together_are_pytorch_on_the_whole_batch(cuts, dtype, tolerance):
    x, dy = draw(5)
    results = run_ranks([list(zip(np.split(x, cuts), np.split(dy, cuts), strict=True))], 5, dtype)
    y = np.concatenate([outputs[0][0] for outputs, _ in results])
    dx = np.concatenate([outputs[0][1] for outputs, _ in results])
    grads = {name: sum(parameters[name].grad for _, parameters in results) for name in results[0][1]}
    values = {name: parameter.value for name, parameter in results[0][1].items()}
    # What the training step does: gradients of statistics are added to them.
    running = [values[f"norm.running_{what}"] + grads[f"norm.running_{what}"] for what in ("mean", "var")]
    received = [y, dx, grads["norm.weight"], grads["norm.bias"], *running]
    for one, other in zip(received, whole_batch_of_pytorch(x, dy), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=10 * tolerance)


def test_only_the_first_data_rank_speaks_for_the_statistics():
    x, dy = draw(4)
    results = run_ranks([[(x[:2], dy[:2]), (x[2:], dy[2:])]], 4)
    for rank, (_, parameters) in enumerate(results):
        for what in ("mean", "var"):
            parameter = parameters[f"norm.running_{what}"]
            assert parameter.block.spec.role == "statistic"
            assert parameter.grad.any() == (rank == 0)
            np.testing.assert_array_equal(parameter.value, make_parameters(LAYER)[parameter.block.name].value)


def test_micro_batches_share_the_momentum_by_their_samples():
    (x, dy), sizes = draw(6), [1, 2, 3, 0]
    parts = [[(x[a:b], dy[a:b])] for a, b in zip(np.cumsum([0, *sizes[:-1]]), np.cumsum(sizes), strict=True)]
    _, parameters = run_ranks(parts, 6)[0]
    before = parameters["norm.running_mean"].value
    expected = 0.1 * sum(len(part[0][0]) / 6 * (part[0][0].mean(axis=(0, 1, 2)) - before) for part in parts[:3])
    np.testing.assert_allclose(parameters["norm.running_mean"].grad, expected, rtol=1e-12)


def test_one_row_has_no_variance():
    module, parameters = build_alone(BatchNorm2d("norm", 3))
    y, saved = module.forward(np.array([[1.0, 2.0, 3.0]]), Context(training=True))
    np.testing.assert_allclose(y[0], parameters["norm.bias"].value)
    dx, pending = module.backward_input(np.ones((1, 3)), saved)
    module.backward_weight(pending)
    np.testing.assert_allclose(dx, 0, atol=1e-10)
    np.testing.assert_allclose(parameters["norm.running_var"].grad, -0.1 * parameters["norm.running_var"].value)


def test_evaluation_uses_the_running_statistics_and_changes_nothing():
    x, dy = draw(2)
    module, parameters = build_alone(LAYER)
    weight, bias, mean, variance = (parameters[f"norm.{name}"].value for name in ("weight", "bias", "running_mean", "running_var"))
    y, saved = module.forward(x, Context(training=False))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(variance + 1e-5) * weight + bias, rtol=1e-12)
    dx, pending = module.backward_input(dy, saved)
    np.testing.assert_allclose(dx, dy * weight / np.sqrt(variance + 1e-5), rtol=1e-12)
    module.backward_weight(pending)
    assert not parameters["norm.running_mean"].grad.any() and not parameters["norm.running_var"].grad.any()


def test_parameters_are_those_of_pytorch_and_divide_with_the_channels():
    names = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    for split, dim in ((False, None), (True, 0)):
        specs = BatchNorm2d("norm", 3, split=split).parameters
        assert [spec.name for spec in specs] == names
        assert [spec.role for spec in specs] == ["weight", "weight", "statistic", "statistic"]
        assert {spec.split_dim for spec in specs} == {dim} and not any(spec.decay for spec in specs)
        assert [spec.initial.draw(0, 0, 1)[0] for spec in specs] == [1, 0, 0, 1]
