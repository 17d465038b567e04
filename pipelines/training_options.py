"""Which options does a training have?"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pipelines.room import Accelerator

Decay = Literal["constant", "cosine", "halve", "one-cycle", "halve-late"]
Precision = Literal["float32", "bfloat16"]
_ONE_CYCLE_RISE = 0.05
"""Share of the steps over which one-cycle rises if no warm-up is given. Source: RAFT."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long, how fast and on how many workers a network is trained."""

    steps: int
    """Optimiser updates. Raise them for a better network, as long as validation improves."""
    global_batch: int = 4
    """Pairs in a step, over all workers. Raise it for smoother gradients; lower it if memory runs out."""
    learning_rate: float = 1e-4
    """Peak learning rate of Adam; --training.warmup and --training.decay scale it. Lower it if the loss isn't
    finite or the network collapses."""
    warmup: float = 0.0
    """Share of the steps, in [0, 1), over which the learning rate rises linearly to its peak. Use 0.1 for
    fresh weights at a high learning rate. With the decay one-cycle, 0 means 0.05."""
    decay: Decay = "constant"
    """What the learning rate does after the warm-up: it stays, falls to 0 along a cosine, is halved after
    each quarter of the steps, falls to 0 along a line (one-cycle), or stays for five sixths of the steps and
    then halves five times (halve-late). Use constant if you may continue training later, another for the best
    accuracy."""
    weight_decay: float = 0.0
    """Share of each weight that AdamW takes away in a step, times the learning rate. 0 is Adam. Take 1e-5 to
    1e-4 when few pairs with truth are learnt from for long."""
    clip_norm: float = 1.0
    """Maximum gradient norm; a larger gradient is scaled down to it. Lower it if single steps set training
    back."""
    ema_decay: float = 0.0
    """Share of the weights' moving average that a step keeps, in [0, 1); the first steps keep less. The
    average is then validated, stored and registered. 0 uses the weights themselves. Take 0.999 if validation
    fluctuates."""
    max_skipped: int = 10
    """Steps that may be skipped because their loss or gradient isn't finite; one more ends the training. The
    run's artifacts list the pairs of each one, under `skipped`. Raise it for long trainings with bfloat16."""
    workers: int = 1
    """Training processes, each with a GPU or CPU of its own. Raise it to as many GPUs as you have, for faster
    steps."""
    min_workers: int | None = None
    """Fewest training processes. Training starts as soon as this many fit, continues with those that are left
    when a node is lost, and takes in more from the last checkpoint when a node joins. Global batches,
    learning rate and pairs stay the same. `none` always uses --training.workers. Set it where nodes come and
    go."""
    accumulate: int = 1
    """Parts in which a worker processes its share of a global batch, one after the other. Raise it if memory
    runs out: the gradient is the same, for a second forward pass."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of storing them. Turn it on if memory runs out with
    large crops or recurrent networks: the gradient is the same, for about a second forward pass. FlowNet
    gains little."""
    precision: Precision = "float32"
    """Precision of convolutions while training. Matching costs, flow, losses and validation stay float32. Try
    bfloat16 on a GPU."""
    channels_last: bool = False
    """Store the channels of a pixel side by side in memory. Try it with bfloat16 on a GPU, and with small
    networks on CPUs."""
    compiled: bool = False
    """Compile the network with torch.compile: some minutes at the start, then faster steps. On CPUs every
    node needs a C++ compiler. Turn it on for long trainings."""
    accelerator: Accelerator = "auto"
    """`auto` uses GPUs if the cluster has any now. Take `gpu` to wait for nodes that an autoscaler starts,
    `cpu` to leave GPUs alone."""
    readers: int = 2
    """Processes that read and transform pairs for each worker. Raise it if `train/waiting_for_data` is well
    above 0."""
    seed: int = 0
    """Random seed of the initial weights, the order of the pairs and every crop. The same seed gives the same
    network. Change it to see how much results vary."""
    log_every: int = 20
    """Steps between two points of the logged curves; each is the mean over these steps. Raise it for smoother
    curves."""
    validate_every: int = 200
    """Steps between two validations on the held-back pairs. On a spare GPU, or without GPUs in a cluster of
    several nodes, training continues meanwhile, and waits only if one hasn't ended when the next is due. If
    the workers have every GPU, and on a single machine without any, the first worker validates between two
    steps. Raise it if `train/waiting_for_validation_seconds` is high."""
    patience: int | None = None
    """Validations in a row without improvement after which training ends early; the best model is then the
    result. `none` trains to the last step, whose model is the result. Raise it if validation fluctuates."""
    held_back_share: float = 0.05
    """Share of the pairs that is held back for validation, in (0, 1): whole videos, which training never
    sees. Raise it for small sets."""
    held_back_most: int = 64
    """Maximum number of held-back pairs to validate on. Lower it for faster validation; raise it for less
    noisy numbers."""
    keep_checkpoints: int = 3
    """Latest checkpoints to keep; with --training.patience, the best ones and the latest. At least 2, since
    the last one may turn out to have collapsed. Raise it to go back further."""
    keep_every: int | None = None
    """Also keep every checkpoint whose step is a multiple of this, for good, in `kept` in the run's folder.
    It must be a multiple of --training.validate-every. Each becomes a logged model of MLflow when training
    has ended. Set it to look back on how a network learnt."""
    resize_seconds: float = 60.0
    """Seconds between checks for room for more workers; needs --training.min-workers. A worker that joins
    costs the steps since the last checkpoint. Raise it if nodes come and go often."""
    max_failures: int = 3
    """Dead workers to recover from before giving up. Nodes that are taken away with notice, such as spot
    machines, don't count. Raise it for long trainings."""

    def __post_init__(self) -> None:
        counts = (
            "steps",
            "global_batch",
            "workers",
            "readers",
            "log_every",
            "validate_every",
            "held_back_most",
            "accumulate",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.keep_checkpoints < 2:
            raise ValueError(f"keep_checkpoints {self.keep_checkpoints} must be at least 2")
        for name in ("learning_rate", "clip_norm", "resize_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0")
        for name in ("weight_decay", "max_skipped"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be below 0")
        for name in ("warmup", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must lie in [0, 1)")
        if not 0 < self.held_back_share < 1:
            raise ValueError(f"held_back_share {self.held_back_share} must lie between 0 and 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience {self.patience} must be at least 1, or none")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.validate_every):
            raise ValueError(
                f"keep_every {self.keep_every} must be a multiple of validate_every {self.validate_every}"
            )
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} must be at least 1 and at most workers {self.workers}"
            )
        if self.global_batch < self.workers * self.accumulate:
            raise ValueError(
                f"global_batch {self.global_batch} must be at least workers {self.workers} times accumulate "
                f"{self.accumulate}, so that each part has a pair"
            )
        for name, known in (("decay", Decay), ("precision", Precision), ("accelerator", Accelerator)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} {getattr(self, name)!r} must be one of {', '.join(get_args(known))}"
                )

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: a function of the step alone, so that resuming and the
        number of workers don't change it.

        Sources: one-cycle is RAFT's (Teed and Deng, ECCV 2020), halve-late SMURF's (Stone et al., CVPR 2021).
        A deviation: RAFT's rate begins at 1/25 of the peak and ends at 1/250,000; this one rises from 0 and
        falls to 0.
        """
        rise = _ONE_CYCLE_RISE if self.decay == "one-cycle" and self.warmup == 0 else self.warmup
        warm = round(rise * self.steps)
        if step < warm:
            return self.learning_rate * ((step + 1) / warm)
        match self.decay:
            case "constant":
                return self.learning_rate
            case "cosine":
                done = (1 - math.cos(math.pi * (step - warm) / (self.steps - warm))) / 2
                return self.learning_rate * (1 - done)
            case "halve":
                quarters = sum(step >= round(quarter * self.steps / 4) for quarter in (1, 2, 3))
                return self.learning_rate * 0.5**quarters
            case "one-cycle":
                return self.learning_rate * ((self.steps - step) / (self.steps - warm))
            case "halve-late":
                late = max(0.0, step - 5 / 6 * self.steps)
                return self.learning_rate * math.exp2(-late / (self.steps / 30))
