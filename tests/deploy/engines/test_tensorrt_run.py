"""How the TensorRT engine runs: streams, memory, profiles and CUDA graphs, on a stand-in that checks them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from eqsat_deploy.engines import tensorrt_run
from eqsat_deploy.errors import EngineError, InputError
from tests.deploy.engines.tensorrt_cases import build, fake, model
from tests.deploy.placing import images

__all__ = ["fake", "model"]


def test_calls_compute_the_module_on_a_stream_of_their_own(fake, model) -> None:
    engine = build(model)
    for size in (1, 3):
        x = images(1, batch=size, seed=5)[0]
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(engine(x), expected, atol=0.05 * float(expected.abs().max()), rtol=0)
    (step, handle) = fake.calls[-1]
    assert step == "execute"
    assert handle != fake.caller.cuda_stream


def test_memory_is_used_where_it_is_unless_it_is_misaligned_or_strided(fake, model) -> None:
    engine = build(model)
    (context,) = engine._workers.queue[0]._contexts.values()
    x = images(1, batch=3)[0]
    expected = engine(x)
    assert context.addresses["x"] == x.data_ptr()
    shifted = torch.cat([x.flatten(), x.flatten()]).roll(1)[1 : 1 + x.numel()].reshape(x.shape)
    for given in (x.to(memory_format=torch.channels_last), shifted):
        assert torch.equal(engine(given), expected)
        assert context.addresses["x"] != given.data_ptr()


def test_profiles_of_their_own_serve_their_sizes(fake, model) -> None:
    engine = build(model, profiles=[1, 4])
    profiles = [call[1]["x"] for call in fake.calls if call[0] == "profile"]
    assert [tuple(shape[0] for shape in profile) for profile in profiles] == [(1, 2, 4), (1, 1, 1), (4, 4, 4)]
    assert engine.loaded.profiles == [(1, 4), (1, 1), (4, 4)]
    for size, profile in ((2, 0), (1, 1), (4, 2), (3, 0)):
        x = images(1, batch=size)[0]
        with torch.no_grad():
            expected = model(x)
        torch.testing.assert_close(engine(x), expected, atol=0.05 * float(expected.abs().max()), rtol=0)
        assert engine._workers.queue[0].context(size).profile == profile
    assert fake.steps.count("context") == 3
    with pytest.raises(InputError, match="batches of 5 are outside"):
        build(model, profiles=[5])
    with pytest.raises(InputError, match="profiles=0"):
        build(model, profiles=[0])


def test_each_stream_serves_a_call_at_a_time(fake, model) -> None:
    engine = build(model, streams=2)
    with engine._worker() as one, engine._worker() as two:
        assert one.stream is not two.stream
        assert engine._workers.empty()
    assert engine._workers.qsize() == 2
    fake.fail = {"execute"}
    with pytest.raises(EngineError):
        engine(images(1, batch=2)[0])
    assert engine._workers.qsize() == 2
    fake.fail = set()
    xs = images(16, batch=2)
    expected = [engine(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(engine, xs), expected, strict=True):
            assert torch.equal(found, wanted)
    with pytest.raises(InputError, match="streams=33: at most 32"):
        build(model, streams=33)
    with pytest.raises(InputError, match="streams=0"):
        build(model, streams=0)


def test_results_are_in_order_on_the_callers_stream_without_waiting(fake, model) -> None:
    """What is let go of must not be released before the work is done, as the stand-in checks."""
    engine = build(model)
    xs = images(3, batch=2)
    expected = [engine(x) for x in xs]
    with engine._worker() as worker:
        found = [worker({"x": x}, 2, wait=False)["output_0"] for x in xs]
        assert worker.stream.queue
        assert not torch.equal(found[-1], expected[-1])
        fake.caller.synchronize()
    for got, wanted in zip(found, expected, strict=True):
        assert torch.equal(got, wanted)
    assert build(model, asynchronous=True).options == {"asynchronous": True}


def test_memory_for_results_is_taken_before_the_stream_waits(fake, model) -> None:
    """Else another thread's work on what it has let go of, queued in between on the caller's stream, may still run."""
    engine, x = build(model), images(1, batch=2)[0]
    with engine._worker() as worker:
        known: list[int] = []
        wait = worker.stream.wait_stream
        worker.stream.wait_stream = lambda stream: (known.extend(fake.tensors), wait(stream))
        result = worker({"x": x}, 2)["output_0"]
    assert result.data_ptr() in known


@pytest.mark.parametrize("graphs", [False, True])
def test_work_queued_before_a_call_is_seen_by_it(fake, model, graphs) -> None:
    engine = build(model, cuda_graphs=graphs)
    x, y = images(2, batch=2)
    expected = engine(y)
    fake.caller.queue.append(lambda: x.copy_(y))
    assert torch.equal(engine(x), expected)


def test_cuda_graphs_are_recorded_once_a_size_and_replayed(fake, model) -> None:
    plain, engine = build(model), build(model, cuda_graphs=True, profiles=[1])
    for size in (2, 1, 2, 3, 1, 2):
        x = images(1, batch=size, seed=size)[0]
        fake.calls.clear()
        found = engine(x)
        assert torch.equal(found, plain(x))
        again = engine(x + 1)
        assert not torch.equal(found, again), "results are memory of their own"
    (worker,) = engine._workers.queue
    assert sorted(worker._recorded) == [1, 2, 3]
    assert {size: r.context.profile for size, r in worker._recorded.items()} == {1: 1, 2: 0, 3: 0}
    fake.calls.clear()
    engine(images(1, batch=3)[0])
    assert fake.calls == []  # nothing is asked of TensorRT


def test_more_sizes_than_are_recorded_run_as_without(fake, model, monkeypatch) -> None:
    monkeypatch.setattr(tensorrt_run, "GRAPHS", 2)
    engine, plain = build(model, cuda_graphs=True), build(model)
    for size in (1, 2, 3, 4, 3):
        x = images(1, batch=size)[0]
        assert torch.equal(engine(x), plain(x))
    assert sorted(engine._workers.queue[0]._recorded) == [1, 2]


def test_a_network_that_cannot_be_recorded_says_so(fake, model) -> None:
    engine = build(model, cuda_graphs=True)
    fake.fail = {"record"}
    with pytest.raises(EngineError, match=r"cannot be recorded.*capturing.*without cuda_graphs"):
        engine(images(1)[0])


def test_an_error_is_told_once(fake, model) -> None:
    engine = build(model)
    engine.loaded.errors.report_error(1, "out of memory")
    engine.loaded.errors.report_error(1, "out of memory")
    fake.fail = {"execute"}
    with pytest.raises(EngineError, match=r"says: out of memory$"):
        engine(images(1)[0])
    with pytest.raises(EngineError, match="no reason"):
        engine(images(1)[0])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("shape", "outside what the engine was built for"),
        ("infer", "x unspecified"),
        ("execute", "did not run"),
    ],
)
def test_failures_of_a_call_name_the_step(fake, model, step, message) -> None:
    engine = build(model)
    fake.fail = {step}
    with pytest.raises(EngineError, match=message):
        engine(images(1, batch=2)[0])
