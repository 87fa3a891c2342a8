"""The loop every method shares: data order, accumulation, updates, resume, logs, samples, validation, signals.

Only this module knows Accelerate and ranks. train.py holds the smallest method.
"""

import importlib.util
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AutocastKwargs,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
    gather_object,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import checkpoint, config, draws, latents, models, report, schedules, validation
from .config import ConfigError, EMAConfig, MachineError, OptimConfig, RunConfig, Section, UserError
from .data import DataConfig, PairedData, Pairs
from .data.stream import Batch, Samples, Stream, positions
from .draws import Draws
from .folder import RunFolder
from .models import LatentSpace
from .pipeline import Card
from .progress import Progress
from .samplers import SampleConfig

Net = TypeVar("Net", bound=nn.Module)
T = TypeVar("T")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = 75  # exit code: stopped by a signal after saving; run again to go on


class Config(Protocol):
    """The sections that the loop reads; a method's config has more."""

    run: RunConfig
    data: DataConfig
    optim: OptimConfig
    ema: EMAConfig
    sample: SampleConfig


class Method(validation.Translator, Protocol):
    """One training method: its networks, one micro-batch of mathematics, and what follows an optimiser step."""

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, and backward through ``run.update``; what to log, scalars or rows [B] with NaN for "none"."""
        ...

    def after_step(self) -> None:
        """What follows an optimiser step, such as an average of weights."""
        ...


class Run:
    """One training run: processes, folder, progress."""

    def __init__(self, cfg: Config, data: PairedData):
        self.cfg, self.data = cfg, data
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.stopping = self.discarding = self.missed = False
        launched = int(os.environ.get("WORLD_SIZE", 1))
        self.accumulation = _accumulation(cfg.data, launched)
        self.accelerator = _accelerator(cfg.run, self.accumulation)
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.world, self.main = self.accelerator.num_processes, self.accelerator.is_main_process
        if self.world != launched:  # plain torchrun without a GPU: independent trainings in one folder
            raise ConfigError(
                f"{launched} processes launched, but each sees {self.world}; without GPUs set run.device=cpu"
            )
        self.precision = self.accelerator.mixed_precision  # no, bf16 or fp16
        self.folder = RunFolder(cfg.run.folder)
        self.trained: dict[nn.Module, tuple[str, Any]] = {}  # wrapped net -> name, optimiser
        self.optims: dict[str, OptimConfig] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}  # with fp16
        self.averages: dict[str, nn.Module] = {}
        self.inputs = {"SAR values and turned pairs": data.digest}  # -> hash; a resume needs the same
        self.space: LatentSpace | None = None  # a method that trains on latents names it here
        self.norms: dict[str, Tensor] = {}
        torch.manual_seed(cfg.run.seed)  # initial weights

    # what a method is built from -------------------------------------------------------------------------------------

    def trainable(
        self, name: str, net: nn.Module, optim: OptimConfig | None = None, second_order: bool = False
    ) -> nn.Module:
        """Wrap ``net`` for training with an AdamW of its own; both become part of every checkpoint. Parameters that
        need no gradient now are never trained. ``second_order``: a loss has second derivatives of ``net``, which then
        is neither compiled nor in 16 bits."""
        self.optims[name] = optim = optim or self.cfg.optim
        net = net.to(self.device).train()  # from_pretrained returns a net in eval mode
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        if self.cfg.run.compile and not second_order:
            net.compile()  # in place: torch.compile(net) would prefix the keys of its state dict
        autocast = AutocastKwargs(enabled=False) if second_order else None
        self.accelerator.autocast_handler = cast(None, autocast)  # its annotation is too narrow
        wrapped, optimizer = self.accelerator.prepare(net, optimizer)
        self.accelerator.autocast_handler = None
        if self.accelerator.scaler is not None:
            # one shared by several optimisers would change its scale between their backward passes
            self.scalers[name] = optimizer.scaler = deepcopy(self.accelerator.scaler)
        self.trained[wrapped] = name, optimizer
        return wrapped

    def frozen_copy(self, net: Net, average: str | None = None) -> Net:
        """A copy without gradients, in eval mode. ``average`` names it in checkpoints. Call before ``trainable``."""
        copy = deepcopy(net).eval().requires_grad_(False)
        self.accelerator.prepare_model(copy, evaluation_mode=True)  # in place: device and autocast, no DDP
        if average is not None:
            self.averages[average] = copy
        return copy

    def bare(self, net: nn.Module) -> nn.Module:
        """The module itself, without its DDP or autocast wrapper."""
        return self.accelerator.unwrap_model(net)

    def update(self, loss: Tensor, net: nn.Module) -> None:
        """Backward; once the accumulation is full, clip, set the rate and step the optimiser of ``net``."""
        name, optimizer = self.trained[net]
        optim = self.optims[name]
        self.accelerator.scaler = self.scalers.get(name)  # Accelerate's own methods know one
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and not self.discarding:
            # only this optimiser: Accelerate's own clip_grad_norm_ un-scales all of them
            self.accelerator.unscale_gradients(optimizer)
            # gradients are reduced by now: every process sees the same norm and decides alike
            limit = math.inf if optim.clip_norm is None else optim.clip_norm
            self.norms[name] = norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
            for group in optimizer.param_groups:
                group["lr"] = schedules.learning_rate(optim, self.step, self.cfg.run.max_steps)
            if self._usable(norm, name) or name in self.scalers:
                optimizer.step()  # with fp16 the scaler skips a non-finite step itself, and lowers its scale
        optimizer.zero_grad()  # has no effect until the accumulation is full

    def card(self, method: str, **own: Any) -> Card:
        """What the model folder of this run says beside its weights; ``own`` are fields that the method sets."""
        cfg, data = self.cfg, self.data
        return Card(
            method=method,
            sar=data.radiometry.to_dict(),
            resolution=cfg.data.resolution,
            sampler=cfg.sample.sampler,
            steps=cfg.sample.steps,
            guidance=cfg.sample.guidance,
            lists=data.list_hashes,
            sar_percentiles=data.sar_percentiles,
            **own,
        )

    def average(self, ema: nn.Module, net: nn.Module) -> None:
        """ema <- d_n ema + (1 - d_n) net, by the rule of the ``ema`` section; n counts the updates done."""
        models.lerp_(ema, self.bare(net), schedules.ema_decay(self.cfg.ema, self.step - self.skipped))

    def reached(self, step: int) -> bool:
        """Whether ``step`` updates are done. Always true in the discarded step at the start of a process, so that
        every network takes part in it."""
        return self.discarding or self.step >= step

    @property
    def logging(self) -> bool:
        """Whether the next update is one that the log has a row of."""
        return _due(self.step + 1, self.cfg.run.log_every)

    # the loop --------------------------------------------------------------------------------------------------------

    def fit(self, method: Method) -> None:
        """Train to ``max_steps``, from the newest valid checkpoint if there is one."""
        if self.cfg.data.cache_latents != "off":
            self._read_latents()
        run, stream = self.cfg.run, Stream(self.data.train, self.cfg.run.seed)
        self._begin(method, stream)
        progress = Progress(self.step, run.max_steps, self.cfg.data.batch_size, self.device, self.main)
        stop = self._evaluate(method, progress)  # what an interrupted run still owes for its last step
        batches = self._batches(stream)
        while self.step < run.max_steps and not stop:
            logged = self._step(method, batches, progress)
            stop = self._anywhere(self.stopping)
            if _due(self.step, run.log_every):
                self._log(logged, progress)
            saving = stop or _due(self.step, run.checkpoint_every) or self.step == run.max_steps
            if saving:
                self._save(method)
            if not stop and self._evaluate(method, progress):
                stop = True
                if not saving:
                    self._save(method)
        progress.close()
        self._end(method, progress, interrupted=stop)

    def _read_latents(self) -> None:
        """From now on the training pairs are latents, computed once and shared by all runs that need the same."""
        assert self.space is not None
        data, space = self.data, self.space
        plan = latents.plan(data, space.factor)
        key = self._on_main(lambda: latents.claim(data, space, plan))
        latents.build(data, space, plan, key, self.rank, self.world)
        self._anywhere(False)  # wait for the others
        self.data = replace(data, train=latents.opened(data, plan, key))

    def _step(self, method: Method, batches: Iterator[Batch], progress: Progress) -> dict[str, Tensor]:
        """One optimiser step; sum and count [2] of every logged value on this process."""
        logged: dict[str, Tensor] = {}
        self.missed, rates = False, self._rates()
        for _ in range(self.accumulation):
            with progress.waiting():
                batch = next(batches)
            with self.accelerator.accumulate(*self.trained):
                values = method.step(batch)
            for key, value in values.items():
                value = value.detach().double()
                row = torch.stack([value.nansum(), (~value.isnan()).sum().double()])
                logged[key] = logged[key] + row if key in logged else row
        if not self.missed:
            method.after_step()
        self.step += 1
        progress.update()
        return logged | {
            name: torch.tensor([rate, 1.0], dtype=torch.float64, device=self.device) for name, rate in rates.items()
        }

    def _rates(self) -> dict[str, float]:
        """The learning rates of the next update; ``lr/NAME`` for networks with one of their own."""
        names = {"lr" if optim is self.cfg.optim else f"lr/{name}": optim for name, optim in self.optims.items()}
        return {key: schedules.learning_rate(optim, self.step, self.cfg.run.max_steps) for key, optim in names.items()}

    def _batches(self, stream: Stream) -> Iterator[Batch]:
        data = self.cfg.data
        order = positions(self.step, data.batch_size, data.micro_batch, self.rank, self.world)
        loader = DataLoader(
            stream,
            batch_sampler=order,  # pyright: ignore[reportArgumentType]
            num_workers=data.workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_ignore_stop,
        )
        return map(self._batch, loader)

    def first_batch(self, stream: Stream) -> Batch:
        """The first micro-batch of the run, read in this process."""
        return self._batch(stream.__getitems__(list(range(self.cfg.data.micro_batch))))

    def _batch(self, samples: Samples | UserError) -> Batch:
        if isinstance(samples, UserError):
            raise samples
        seed = self.cfg.run.seed
        # for layers that use the global generator, such as dropout
        torch.manual_seed(int(draws.rng(seed, "global", samples.positions[0]).integers(2**63)))
        sar, opt = (x.to(self.device, non_blocking=True) for x in (samples.sar, samples.opt))
        return Batch(sar, opt, Draws(seed, samples.positions, self.device, ready={"eps": samples.eps}))

    def _usable(self, norm: Tensor, name: str) -> bool:
        """Whether the gradient is finite; raises after too many in a row that are not."""
        if norm.isfinite():
            self.skipped_in_a_row = 0
            return True
        self.missed = True
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        # a loss scaler finds its scale by overshooting: with fp16 some skipped steps are normal
        allowed = self.cfg.run.skip_nonfinite or (20 if self.scalers else 0)
        if self.skipped_in_a_row > allowed:
            raise ConfigError(
                f"step {self.step + 1}: the gradient norm of {name!r} is {norm.item()} "
                f"({self.skipped_in_a_row} in a row, run.skip_nonfinite allows {allowed}); this step was not saved, "
                "older checkpoints are intact. Lower optim.lr, or set run.precision=fp32"
            )
        return False

    # what is written -------------------------------------------------------------------------------------------------

    def _log(self, logged: dict[str, Tensor], progress: Progress) -> None:
        """One row of this step: means over micro-batches and processes. What depends on the clock goes elsewhere, so
        that log.jsonl of an interrupted run equals that of an uninterrupted one."""
        totals = torch.as_tensor(self.accelerator.reduce(torch.stack([*logged.values()]), "sum")).tolist()
        means = {key: total / count for key, (total, count) in zip(logged, totals, strict=True) if count}
        norms = {f"grad_norm/{name}": norm.item() for name, norm in self.norms.items()}
        row = {"step": self.step, "samples": self.step * self.cfg.data.batch_size, **means, **norms}
        row |= {"skipped": self.skipped} if self.skipped else {}
        if self.main:
            timing = progress.report(row)
            self.folder.append("log.jsonl", row)
            self.folder.append("timing.jsonl", timing)
            self._track(row | timing)

    def _evaluate(self, method: Method, progress: Progress) -> bool:
        """The sample grid and the validation of this step, where due and not yet written; True if interrupted."""
        run, sample, step = self.cfg.run, self.cfg.sample, self.step
        split, pairs = ("val", self.data.val) if len(self.data.val) else ("train", self.data.train)
        picture = self.folder.path / "samples" / f"step-{step:08d}.png"
        if _due(step, run.sample_every) and self._on_main(lambda: not picture.exists()):
            rows = self._rows(method, validation.picture_rows, pairs, sample.ids)
            if rows is None:
                return True
            behind = self._rows(method, validation.evidence_rows, pairs, sample.ids)
            if behind is None:
                return True
            if self.main:
                if behind:
                    checkpoint.put(picture.with_stem(f"behind-{step:08d}"), validation.sheet(behind))
                checkpoint.put(picture, validation.sheet(rows))
        if _due(step, run.validate_every) and self._on_main(lambda: step not in self.folder.steps("metrics.jsonl")):
            rows = self._rows(method, validation.metric_rows, pairs, sample.validate_ids)
            if rows is None:
                return True
            if self.main:
                means = validation.mean_row(rows)
                self.folder.append("metrics.jsonl", {"step": step, "split": split, "n": len(rows), **means})
                self._track({"step": step} | {f"{split}/{key}": value for key, value in means.items()})
                n = f"{len(rows)} {split} images"
                progress.say(f"step {step}: PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.3f} on {n}")
        return False

    def _rows(self, method: Method, work: Callable, pairs: Pairs, count: int) -> list[dict[str, Any]] | None:
        """``work`` on ``count`` fixed pairs, shared among processes; rows in their order, complete on every process.
        None if a stop signal came in between."""
        chunk, indices = self.cfg.data.micro_batch, validation.spread(len(pairs), count)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(indices), chunk * self.world):
            if self._anywhere(self.stopping):
                return None
            mine = indices[start + self.rank * chunk : start + (self.rank + 1) * chunk]
            if mine:
                batch = validation.fixed_batch(pairs, mine, self.cfg.run.seed, self.device)
                rows += work(method, batch, self.cfg.sample.steps)
        order = {pairs.ids[i]: k for k, i in enumerate(indices)}
        return sorted(gather_object(rows), key=lambda row: order[row["id"]])

    def _track(self, row: dict[str, Any]) -> None:
        values = {key: value for key, value in row.items() if key != "step"}
        for tracker in list(self.accelerator.trackers):
            try:
                tracker.log(values, step=row["step"])
            except Exception as error:  # a tracker's server may fail in any way; log.jsonl has the row
                print(f"warning: {tracker.name} failed and is dropped: {error}", file=sys.stderr)
                self.accelerator.trackers.remove(tracker)

    # what survives a crash -------------------------------------------------------------------------------------------

    def _begin(self, method: Method, stream: Stream) -> None:
        run_id = self._on_main(lambda: self.folder.claim(cast(Section, self.cfg), self.world))
        self._resume()
        self._on_main(lambda: self.folder.forget_after(self.step))
        if self.cfg.run.trackers:
            options = {"wandb": {"id": run_id, "resume": "allow"}, "tensorboard": {"purge_step": self.step + 1}}
            self.accelerator.init_trackers(self.cfg.run.name, init_kwargs=options)
        if self.main:
            print(f"{self.folder.path}: {'resumed' if self.step else 'starts'} at step {self.step}", flush=True)
        for number in STOP_SIGNALS:
            signal.signal(number, self._request_stop)
        # One discarded step at every start, fresh or resumed. DDP re-orders its gradient buckets after its first
        # backward; without this, 3 or more processes sum in another order after a resume and the last bit differs.
        self.discarding = True
        method.step(self.first_batch(stream))
        self.discarding = False

    def _save(self, method: Method) -> None:
        """All processes hold the same state, and there is no generator state to save: the main one writes."""
        state = {
            "seed": self.cfg.run.seed,
            "batch_size": self.cfg.data.batch_size,
            "config": config.digest(cast(Section, self.cfg)),
            "lists": self.data.list_hashes,
            "skipped": [self.skipped, self.skipped_in_a_row],
            "scalers": {name: scaler.state_dict() for name, scaler in self.scalers.items()},
            "inputs": self.inputs,
        }
        self._on_main(lambda: self._write(method, state))

    def _write(self, method: Method, state: dict[str, Any]) -> None:
        tensors = {name: net.state_dict() for name, net in self.averages.items()}
        for net, (name, optimizer) in self.trained.items():
            tensors[name] = self.bare(net).state_dict()
            tensors[f"{name}.optim"] = checkpoint.pack(optimizer, self.bare(net))
        checkpoint.save(self.folder.checkpoints, self.step, tensors, state)
        checkpoint.rotate(self.folder.checkpoints, self.cfg.run.keep_checkpoints)
        self._export(method)
        report.run_page(self.folder.path)

    def _export(self, method: Method) -> None:
        final = self.folder.path / "model"
        tmp = final.with_name(f".tmp-model-{os.getpid()}")
        try:
            method.pipeline.save_pretrained(tmp)
            checkpoint.commit(tmp, final)
        except OSError as error:
            raise MachineError(f"{final}: not written: {error}; the checkpoint is intact") from error

    def _resume(self) -> None:
        folder = self.folder.checkpoints
        self.step = self._on_main(lambda: checkpoint.newest_step(folder))  # all processes load the same one
        if not self.step:
            return
        path = folder / f"step-{self.step:08d}"
        tensors, state = checkpoint.load(folder, self.step)
        _require_same("another list of pairs", state["lists"], self.data.list_hashes, path)
        _require_same("other data or networks", state.get("inputs", {}), self.inputs, path)
        for name, net in self.averages.items():
            checkpoint.restore(net, name, tensors, path)
        for net, (name, optimizer) in self.trained.items():
            checkpoint.restore(self.bare(net), name, tensors, path)
            checkpoint.unpack(optimizer, self.bare(net), tensors[f"{name}.optim"])
        self.skipped, self.skipped_in_a_row = state["skipped"]
        for name, scaler in self.scalers.items():
            scaler.load_state_dict(state["scalers"][name])

    def _end(self, method: Method, progress: Progress, interrupted: bool) -> None:
        def finish() -> None:
            if not interrupted:
                self._export(method)  # a run killed between its last checkpoint and its export still owes this
            self.folder.release("PREEMPTED" if interrupted else "DONE", self.step)
            report.run_page(self.folder.path)

        self._on_main(finish)
        saved = f"{self.folder.path}: stopped and saved at step {self.step}; the same command goes on from there"
        done = f"{self.folder.path}: done after {self.step} steps; model in {self.folder.path / 'model'}"
        progress.say(saved if interrupted else done)
        self.accelerator.end_training()
        if interrupted:
            sys.exit(STOPPED)

    def _request_stop(self, number: int, _frame: object) -> None:
        if self.stopping:  # the second signal does not wait for the step to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.stopping = True

    # between processes -----------------------------------------------------------------------------------------------

    def _anywhere(self, flag: bool) -> bool:
        raised = torch.tensor(float(flag), device=self.device)
        return bool(torch.as_tensor(self.accelerator.reduce(raised, "sum")) > 0)

    def _on_main(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the main process, or its error, on all of them."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except (UserError, MachineError) as error:
                outcome[1] = error
        if self.world > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            if self.main:
                raise outcome[1]
            sys.exit(3 if isinstance(outcome[1], MachineError) else 2)  # the main process says why
        return outcome[0]


def _accumulation(data: DataConfig, processes: int) -> int:
    steps, rest = divmod(data.batch_size, data.micro_batch * processes)
    if rest or not steps:
        fitting = [m for m in range(1, data.batch_size + 1) if data.batch_size % (m * processes) == 0]
        advice = f"data.micro_batch could be {', '.join(map(str, fitting))}" if fitting else "use fewer processes"
        raise ConfigError(
            f"data.batch_size={data.batch_size} is not a multiple of data.micro_batch={data.micro_batch} x "
            f"{processes} process(es); {advice}"
        )
    return steps


def _accelerator(run: RunConfig, accumulation: int) -> Accelerator:
    for tracker in run.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"run.trackers: {tracker} is not installed; pip install 'sar2opt[log]'")
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    gpu = run.device == "auto" and torch.cuda.is_available()
    if run.precision == "fp16" and not gpu:
        raise ConfigError("run.precision=fp16 needs a GPU; use fp32, bf16 or auto")
    auto = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    precision = auto if run.precision == "auto" else run.precision
    return Accelerator(
        cpu=not gpu,
        mixed_precision="no" if precision == "fp32" else precision,
        # a short last step would still divide by the full count: our stream has no last step
        gradient_accumulation_plugin=GradientAccumulationPlugin(accumulation, sync_with_dataloader=False),
        log_with=list(run.trackers) or None,
        project_config=ProjectConfiguration(project_dir=str(run.folder)),
    )


def _require_same(what: str, old: dict[str, str], new: dict[str, str], checkpoint: Path) -> None:
    changed = [f"  {k}: was {old.get(k)}, now {new.get(k)}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if changed:
        listed = "\n".join(changed)
        raise ConfigError(
            f"{checkpoint}: trained on {what} (SHA-256):\n{listed}\nrestore them, or choose another run.name"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _as_it_is(samples: Any) -> Any:
    return samples  # the stream has made a batch of them


def _ignore_stop(_worker: int) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
