"""Trackers as they are installed, offline: each has the losses of metrics.jsonl where its own tools find them."""

import os
from importlib.util import find_spec

import pytest

from gora.stages.train import train
from gora.training.metrics import read_metrics
from tests.training.test_keeping import recipe

pytestmark = pytest.mark.slow
FEW = ("train.max_steps=3", "train.learning_rate=1e-3", "evaluation.steps=2")


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"pip install {package}")


def trained(folder, tracker):
    mine = ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "TENSORBOARD_LOGGING_DIR", "MLFLOW_TRACKING_URI")
    before = {name: os.environ.get(name) for name in mine}
    train(recipe(folder, *FEW, f"train.report_to=[{tracker}]"))
    assert {name: os.environ.get(name) for name in mine} == before
    lines = read_metrics(folder / "metrics.jsonl")
    return [line["loss"] for line in lines if "loss" in line]


@needs("tensorboard")
def test_tensorboard_has_the_losses(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = trained(tmp_path / "run", "tensorboard")
    (events,) = {path.parent for path in (tmp_path / "run" / "tracking").rglob("events.*")}
    found = EventAccumulator(str(events))
    found.Reload()
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx(losses, rel=1e-5)
    assert len(found.Scalars("eval/loss")) >= 1


@needs("mlflow")
def test_mlflow_has_the_losses(tmp_path):
    losses = trained(tmp_path / "run", "mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'tracking' / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "gora"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.value for metric in sorted(history, key=lambda metric: metric.step)] == pytest.approx(losses)


@needs("wandb")
def test_wandb_writes_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(tmp_path / "run", "wandb")
    (log,) = (tmp_path / "run" / "tracking").rglob("run-*.wandb")
    assert log.stat().st_size > 0 and b"train/loss" in log.read_bytes()


@needs("trackio")
def test_trackio_has_the_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    losses = trained(tmp_path / "run", "trackio")
    assert losses and any((tmp_path / "trackio").rglob("*"))
