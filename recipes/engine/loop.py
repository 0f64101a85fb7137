"""The training loop: the only one.

A run's folder holds
    config.json       what the numbers depend on
    log.jsonl         a line for each epoch of training, and one for each evaluation
    events.out.…      the same for TensorBoard
    checkpoint.pt     everything that the next batch depends on; see Run.state_dict
    results.json      written at the end: config, class counts, metrics with their split
    *.png             plots

A run that is killed and resumed ends with the same bits as one that was not. Under torchrun the
first process alone writes; see :mod:`engine.distributed`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import models
from engine import checkpoint, distributed, ending, folder, options, report
from engine.log import Log
from engine.run import Changes, Run, Task


def fit(
    args: argparse.Namespace, model: nn.Module, task: Task, changes: Changes | None = None
) -> dict[str, Any] | None:
    """Trains ``model`` as ``args`` says (see :mod:`engine.options`) and writes the run's folder.

    Returns:
        The contents of results.json, or None after --stop-epoch and in all processes but one.

    Raises:
        BlockingIOError: another run writes the folder.
        FileExistsError: the folder holds a run, and --resume was not given.
        FloatingPointError: the loss is no longer finite.
        ValueError: the checkpoint is of a run with other options or other data.
    """
    distributed.begin(args.device)
    is_first = distributed.is_first()
    with folder.locked(args.output_dir) if is_first else contextlib.nullcontext():
        run = Run(args, model, task, changes)
        begin(run)
        log = None
        if is_first:
            report.write_json(args.output_dir / "config.json", options.config_of(args))
            log = Log(args.output_dir, run.log_position, run.epoch)
        try:
            train(run, log)
            return conclude(run, log) if log and run.epoch == args.epochs else None
        finally:
            if log:
                log.close()
            distributed.end()


def begin(run: Run) -> None:
    """Brings ``run`` to where its folder's checkpoint, or --stage-one's, says."""
    args = run.args
    exists = run.path.exists()
    distributed.wait()  # before the first process writes it
    if exists:
        if not (args.resume or distributed.was_restarted()):
            raise FileExistsError(
                f"{args.output_dir} holds a run: --resume it, or name another --output-dir"
            )
        run.resume(checkpoint.load_run(run.path, args.device))
    elif args.stage_one:
        run.take_over(checkpoint.load_run(args.stage_one, args.device))
        if distributed.is_first():
            records = args.stage_one.parent / "log.jsonl"
            content = records.read_bytes() if records.exists() else b""
            run.log_position = min(run.log_position, len(content))
            (args.output_dir / "log.jsonl").write_bytes(content[: run.log_position])


def train(run: Run, log: Log | None) -> None:
    """From wherever ``run`` stands to --epochs, or --stop-epoch; ``log`` is the first process's."""
    args = run.args
    run.model.train()
    last = args.epochs if args.stop_epoch is None else min(args.epochs, args.stop_epoch)
    while run.epoch < last:
        run.begin_epoch()
        criterion = run.criterion()
        run.batches.start(run.epoch, run.batch)
        with tqdm(run.loader, f"epoch {run.epoch}", len(run.batches), initial=run.batch,
                  leave=False, disable=None if log else True) as bar:  # fmt: skip
            for inputs, targets in bar:
                run.watch.lap("data")
                run.changes.step(run, criterion, inputs, targets)
                run.batch += 1
                if args.checkpoint_every and run.batch % args.checkpoint_every == 0:
                    run.save()
        end_of_epoch(run, log)
        run.epoch, run.batch = run.epoch + 1, 0
        run.log_position = log.position if log else 0
        run.save()


def end_of_epoch(run: Run, log: Log | None) -> None:
    args, values = run.args, run.meter.read()
    lr, lam = run.optimizer.param_groups[0]["lr"], float(run.optimizer.lam)
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss of epoch {run.epoch} is not finite (lr {lr}, lambda {lam}): lower --lr, or "
            "raise |--lam|"
        )
    if log is None:
        return
    log.write("train", run.epoch, {"lr": lr, "lam": lam, **values})
    print(
        f"epoch {run.epoch:3d}  train: loss {values['loss']:.4f}, weighted "
        f"{values['weighted_loss']:.4f}, lr {lr:.2g}, lambda {lam:g}, ESS {values['ess']:.2f}"
    )
    if args.profile:
        print(f"           {run.watch.line()}")
    _ = run.optimizer.stats().mean  # warns when a few samples carry all the weight
    if args.eval_every and (run.epoch + 1) % args.eval_every == 0:
        metrics = evaluate(run, args.eval_split)
        log.write(args.eval_split, run.epoch, metrics)
        print(f"           {args.eval_split}: {report.line(metrics)}")
        if args.eval_train:
            log.write("train accuracy", run.epoch, evaluate(run, "train"))


@torch.no_grad()
def predict(run: Run, split: str, features: bool = False) -> tuple[Tensor, Tensor]:
    """(logits, targets) of a whole split, on the CPU; with ``features``, the last layer's inputs
    in place of its outputs."""
    forward = functools.partial(models.features, run.model) if features else run.forward
    outputs, labels = [], []
    was_training = run.model.training
    run.model.eval()
    for inputs, targets in run.task.split(split):
        with run.autocast:
            outputs.append(forward(run.inputs(inputs)).float().cpu())
        labels.append(targets)
    run.model.train(was_training)
    return torch.cat(outputs), torch.cat(labels)


def evaluate(run: Run, split: str) -> dict[str, Any]:
    logits, targets = predict(run, split)
    return report.metrics(targets, logits, run.task.class_counts)


def conclude(run: Run, log: Log) -> dict[str, Any]:
    """The one reading of the test set (or of the validation split), results.json and plots."""
    args, task, split = run.args, run.task, run.task.judged_by
    run.changes.finish(run)
    logits, targets = predict(run, split)
    metrics = report.metrics(targets, logits, task.class_counts)
    print(report.class_table(metrics, task.class_counts, task.classes))
    print(f"end        {split}: {report.line(metrics)}")
    records = log.records()
    results = {
        "split": split,
        "metrics": metrics,
        "evaluated": len(targets),
        "class_counts": task.class_counts,
        "held_out": run.changes.held_out_samples,
        "groups": report.groups_by_shots(task.class_counts),
        "config": options.config_of(args),
        "torch": torch.__version__,
    }
    alarms = ending.alarms(results, records)
    report.plot_run(records, results, args.output_dir)
    if args.tsne:
        features, targets = predict(run, split, features=True)
        report.plot_tsne(features, targets, args.output_dir / "tsne.png", split)
    results["alarms"] = alarms
    report.write_json(args.output_dir / "results.json", results)
    for alarm in alarms:
        print(f"ALARM: {alarm}")
    print(f"next: {ending.advice(results, records)}")
    return results
