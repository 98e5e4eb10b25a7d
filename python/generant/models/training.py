"""The training loop of every model: epochs, history, callbacks, early stopping, checkpoints, and going on after them.

A step is recorded once per shape of batch and replayed; what depends on the step number comes in as arrays. Batches,
keys and rates are functions of the seed and the step, so a run that was killed and resumed has the bits of one that was
not. The learners may be on a GPU: data, batches and keys stay on the host, and a step's losses are read when the next
batch is ready. Not here: what a step does.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np

from .. import nn, optim, recording
from ..data.batches import batches, stratified_split
from ..ops import _device
from ..random import Stream, fold_in, permutation
from . import checkpoint
from .estimator import DivergedError

__all__ = ["Training"]

WARMUP = 100  # steps until the learning rate is full, at most a tenth of training
RUN = ("callbacks", "verbose", "checkpoint", "checkpoint_every")  # parameters that do not change what is learned
ORDER, SPLIT = 1, 6  # purposes of random streams, see generative.py


class Training:
    """A model's learners and how far they have come. device: "cpu" or "cuda", where the learners are."""

    def __init__(self, model: Any, learners: dict[str, Any], device: str = "cpu") -> None:
        self.model, self.learners, self.device = model, learners, device
        self.state = {name: learner.state for name, learner in learners.items()}
        self.names: list[str] = []  # of what a step returns
        self.step = recording.record(self._named, self.state)
        self.params = self._params()
        self.done = model.n_iter_
        self.epoch = model.history_[-1]["epoch"] if model.history_ else 0

    def _named(self, state: dict[str, Any], *inputs: Any) -> tuple:
        found = self.model._step(state, *inputs)
        self.names[:] = found
        return tuple(found.values())

    def follow(self) -> None:
        """Take over parameters that were changed after the step was recorded, as plans hold them.

        ValueError where the networks would be others.
        """
        params = self._params()
        if params == self.params:
            return
        for name, fresh in self.model._networks(Stream(self.model._seed)).items():
            shapes = [{path: a.shape for path, a in nn.state(n).items()} for n in (self.learners[name].module, fresh)]
            for path in shapes[0] | shapes[1]:
                was, now = (s.get(path) for s in shapes)
                if was != now:
                    raise ValueError(
                        f"{type(self.model).__name__}: training goes on with the fitted networks, but with changed "
                        f"parameters {name}.{path} would have shape {now} and not {was}; call fit without warm_start"
                    )
        self.params, self.step = params, recording.record(self._named, self.state)

    def finished(self) -> dict[str, Any]:
        """The networks as they are now, averaged where there is an average, on the host."""
        return {name: nn.to_host(learner.finish()) if self.device == "cuda" else learner.finish()
                for name, learner in self.learners.items()}  # fmt: skip

    def moved(self, device: str) -> Training:
        """This training, with the learners on another device."""
        learners = self.model._learners(device)
        made = Training(self.model, learners, device)
        checkpoint.restore("memory", checkpoint.flatten(made.state), checkpoint.flatten(self.state))
        for learner in learners.values():
            learner.reread()
        made.done, made.epoch = self.done, self.epoch
        return made

    # ---- the loop ----

    def run(
        self, x: np.ndarray, codes: Any, weight: np.ndarray, *, epochs: int, constant: bool = False, resume: Any = None
    ) -> None:
        """Train for so many epochs on x (n, d); sets the model's networks_, history_ and n_iter_ whatever ends it."""
        model, self.constant = self.model, constant
        about = (*model.scaling_.arrays().values(), np.array(model.scaling_.scale), model.classes_)
        self.data = checkpoint.fingerprint(x, codes, weight, *about) if resume or model.checkpoint else ""
        self.first, self.first_epoch = self.done, self.epoch
        self.losses: list[list[float]] = []  # of the epoch under way
        self._running: tuple | None = None  # what the step under way returns
        self.best: dict[str, np.ndarray] = {}
        self.best_loss, self.waited = math.inf, 0
        if resume:
            self._resume(resume)  # before anything is drawn: the seed is the checkpoint's
        held: Any = None
        if model.early_stopping and not constant:
            kept, out = self._split(len(x), codes)
            held = tuple(self._placed(a[out]) if a is not None else None for a in (x, codes, weight))
            x, codes, weight = x[kept], None if codes is None else codes[kept], weight[kept]
        self.x, self.codes = x, codes  # what is trained on, for those who observe
        size = min(model._rows(), len(x))
        self.total = epochs * (len(x) // size)
        last = self.first_epoch + epochs
        bar = self._progress((self.total - (self.done - self.first)) * size)
        try:
            while self.epoch < last:
                begun, already = time.perf_counter(), len(self.losses)
                key = Stream(model._seed, ORDER).at(self.epoch)
                rows = model._order(weight, fold_in(key, 0))
                order = (rows[index] for index in batches(len(x), size, key))
                for number, index in enumerate(order):
                    if number < already:  # seen before the checkpoint
                        continue
                    self._one(x[index], None if codes is None else codes[index], weight[index])
                    if bar is not None:
                        bar.update(size)
                self._settle()
                rate = (len(self.losses) - already) * size / (time.perf_counter() - begun)
                self.epoch += 1
                entry = {"epoch": self.epoch, "step": self.done}
                entry |= dict(zip(self.names, map(float, np.mean(self.losses, axis=0)), strict=True))
                entry["images_per_second"] = rate
                self.losses = []
                stop = held is not None and self._watch(held, entry)
                observe = getattr(model, "_observe", None)
                if observe is not None:
                    entry |= observe(self.epoch, last)
                model.history_.append(entry)
                if bar is not None:
                    bar.set_postfix(loss=f"{entry['loss']:.4f}", refresh=False)
                if model.callbacks:
                    self._show()
                if any([callback(model, entry) for callback in model.callbacks]) or stop:
                    break
            if self.best:
                self._restore_best()
        finally:  # whatever ended training, its last good weights are the model
            if bar is not None:
                bar.close()
            if self._running is not None and all(math.isfinite(float(v.ravel()[0])) for v in self._running):
                self.done += 1  # interrupted before the step was settled
            self._running = None
            if self.done > self.first:
                self._show()

    def _placed(self, a: np.ndarray) -> Any:
        return _device.to_device(a) if self.device == "cuda" else a

    def _show(self) -> None:
        self.model.networks_, self.model.n_iter_ = self.finished(), self.done

    def _one(self, x: np.ndarray, codes: Any, weight: np.ndarray) -> None:
        """One step. On a GPU it is left running: `_settle` waits for it."""
        inputs = self.model._inputs(x, codes, weight, self.done + (self._running is not None))
        self._settle()
        for name, learner in self.learners.items():
            learner.prepare(self._rate(name))
        self._running = self.step(*inputs)
        if self.device == "cpu":
            self._settle()

    def _settle(self) -> None:
        """The losses of the step under way, if there is one, and a checkpoint if it is time."""
        if self._running is None:
            return
        model, running, self._running = self.model, self._running, None
        values = [float(v.ravel()[0]) for v in _device.fetch(running)]
        if not all(map(math.isfinite, values)):
            told = ", ".join(f"{name} {v:.4g}" for name, v in zip(self.names, values, strict=True))
            raise DivergedError(
                f"{type(model).__name__}.fit: a loss is no longer finite at step {self.done + 1} (epoch "
                f"{self.epoch + 1}): {told}; training stopped, the weights of step {self.done} are kept. "
                "A lower learning_rate may help"
            )
        self.done += 1
        self.losses.append(values)
        if model.checkpoint is not None and self.done % model.checkpoint_every == 0:
            self._save()

    def _rate(self, name: str) -> float:
        lr = getattr(self.model, "_learning_rate", lambda name: self.model.learning_rate)(name)
        if self.constant:
            return lr
        warmup = min(WARMUP, self.total // 10)
        return optim.cosine(self.done - self.first, lr=lr, total=self.total, warmup=warmup)

    def _progress(self, images: int) -> Any:
        if not self.model.verbose:
            return None
        from tqdm import tqdm  # type: ignore[import-untyped]

        return tqdm(total=images, desc="fit", unit=" images", unit_scale=True, dynamic_ncols=True)

    # ---- early stopping ----

    def _split(self, n: int, codes: Any) -> tuple[np.ndarray, np.ndarray]:
        stream, fraction = Stream(self.model._seed, SPLIT), self.model.validation_fraction
        if n < 2:
            raise ValueError(f"{type(self.model).__name__}.fit: early_stopping needs at least 2 rows, got {n}")
        if codes is not None and codes.min() >= 0 and np.bincount(codes).min() >= 2:
            return stratified_split(codes, fraction, stream)
        order = permutation(next(stream), n)
        count = min(n - 1, max(1, round(fraction * n)))
        return np.sort(order[count:]), np.sort(order[:count])

    def _watch(self, held: tuple, entry: dict[str, Any]) -> bool:
        """Validate; True if training should end."""
        self._show()
        loss = entry["validation_loss"] = float(self.model._at(self.device)._validate(*held))
        if loss < self.best_loss - self.model.tol:
            self.best_loss, self.waited = loss, 0
            self.best = {k: _device.from_device(a.copy()) for k, a in checkpoint.flatten(self._weights()).items()}
        else:
            self.waited += 1
        return self.waited >= self.model.n_iter_no_change

    def _weights(self) -> dict[str, Any]:
        """The arrays that are the model: averages, or parameters where there is none, and buffers."""
        return {
            name: {"buffers": s["buffers"], "flat": s["ema"]["average"] if "ema" in s else s["params"]}
            for name, s in self.state.items()
        }

    def _restore_best(self) -> None:
        for name, array in checkpoint.flatten(self._weights()).items():
            _device.put(array, self.best[name])

    # ---- checkpoints ----

    def _params(self) -> dict[str, Any]:
        params = {k: v for k, v in self.model.get_params(deep=False).items() if k not in RUN}
        return json.loads(json.dumps(params, default=repr))

    def _save(self) -> None:
        model = self.model
        meta = {
            "model": type(model).__name__, "params": self._params(), "data": self.data, "seed": model._seed,
            "done": self.done, "epoch": self.epoch, "first": self.first, "first_epoch": self.first_epoch,
            "names": self.names, "history": model.history_, "best_loss": self.best_loss, "waited": self.waited,
        }
        arrays = {f"state/{k}": a for k, a in checkpoint.flatten(self.state).items() if not k.endswith("/gradient")}
        arrays |= {f"best/{k}": a for k, a in self.best.items()}
        arrays["losses"] = np.array(self.losses, np.float64)
        checkpoint.save(model.checkpoint, arrays, meta)

    def _resume(self, path: Any) -> None:
        arrays, meta = checkpoint.load(path)
        name = type(self.model).__name__
        if meta["model"] != name:
            raise ValueError(f"{name}.fit: {path} is a checkpoint of a {meta['model']}, wanted a {name}")
        own = self._params()
        for key in own:
            if key != "random_state" and own[key] != meta["params"].get(key):
                theirs = meta["params"].get(key)
                raise ValueError(f"{name}.fit: {path} was written with {key} = {theirs!r}, this model has {own[key]!r}")
        if own["random_state"] is not None and meta["seed"] != self.model._seed:
            raise ValueError(f"{name}.fit: {path} was written with another random_state")
        if meta["data"] != self.data:
            raise ValueError(f"{name}.fit: {path} was written for other data (X, y or sample_weight differ)")
        mine = {k: a for k, a in checkpoint.flatten(self.state).items() if not k.endswith("/gradient")}
        checkpoint.restore(path, {f"state/{k}": a for k, a in mine.items()}, arrays)
        for learner in self.learners.values():
            learner.reread()
        self.best = {k.removeprefix("best/"): a for k, a in arrays.items() if k.startswith("best/")}
        self.losses = arrays["losses"].tolist()
        self.best_loss, self.waited = meta["best_loss"], meta["waited"]
        self.done, self.epoch, self.model._seed = meta["done"], meta["epoch"], meta["seed"]
        self.first, self.first_epoch = meta["first"], meta["first_epoch"]
        self.names[:] = meta["names"]
        self.model.history_ = meta["history"]
