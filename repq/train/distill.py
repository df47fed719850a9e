"""A trained detector teaches another one, of any family: its scores, its boxes and its neck's maps.

Source: YOLOv6 report (2209.02976), section 2.4.2: the divergences of the class scores and of the DFL boxes are added
to the loss, with a weight that decays with a cosine, since the teacher helps most at the start.

Every part is a sum over images, to be divided by target scores: either those of the detection loss, or the sum of the
teacher's scores where it sees something. So the parts of several batches add up, and images count by what is in them.
No labels take part.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from repq.errors import TrainingError
from repq.machine.torch_random import seeded
from repq.model import Detector, Spec, TrainOutput
from repq.recipe import ImitationConfig, LoopConfig
from repq.train.boxes import AnchorGrid, grid_of
from repq.train.cuda_graphs import Answers
from repq.train.losses import DetectionLoss, iou_loss
from repq.train.objective import objective_of

if TYPE_CHECKING:
    from repq.preprocessing import Preprocessing

SEEN = 0.03  # a point whose best score is lower shows no object: evaluation starts here
Points = slice | Tensor
"""Numbers of points."""
EPS = 1e-6  # keeps logarithms of saturated float32 scores finite


def check_teacher(teacher: Spec, student: Spec, imgsz: tuple[int, int], config: LoopConfig) -> None:
    """Check that a teacher can look at the images of a training.

    Raises:
        TrainingError: the training draws sizes that the teacher cannot take.
        RepqError: it cannot take ``imgsz``.
    """
    teacher.check_size(*imgsz)
    drawn = config.multi_scale != (1, 1)
    if drawn and (teacher.only_size is not None or student.strides[-1] % teacher.strides[-1]):
        raise TrainingError(
            "the teacher cannot take images of every size that this training draws",
            found=f"{teacher.name} of "
            + ("one size alone" if teacher.only_size else f"the coarsest stride {teacher.strides[-1]}"),
            fix="leave multi_scale away",
        )


class Teacher:
    """A frozen detector, and how much of what it says counts.

    Where neither has the other's levels, those that both have are compared. Maps of other widths, and all with
    ``config.projector_weight``, are compared through a `projector`, which learns with the student and is no part of it;
    the teacher's are brought to a mean square of one first.

    Args:
        model: as trained or fused, on the student's device; it is frozen, in place.
        student: in place on its device.
        classes: where each class of the student is among the teacher's; None: they are the same.
        seed: of the projectors' first weights.
        graphs: whether a GPU may be given CUDA graphs of the teacher.

    Raises:
        TrainingError: student and teacher have other classes, no level in common, or no maps to compare.
    """

    def __init__(
        self,
        model: Detector,
        student: Detector,
        config: ImitationConfig,
        *,
        classes: Sequence[int] | None = None,
        seed: int = 0,
        graphs: bool = True,
    ) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config
        self.spec, self.student = model.spec, student.spec
        self.objectives = objective_of(student), objective_of(model)
        self.strides = tuple(stride for stride in self.student.strides if stride in self.spec.strides)
        self.device = next(student.parameters()).device
        self.classes = None if classes is None else torch.tensor(classes, device=self.device)
        self.clock = Clock(self.device)
        self._answer = Answers(self.model, self.device, graphs=graphs, frozen=True)
        taught = self.spec.num_classes if classes is None else len(classes)
        if taught != self.student.num_classes:
            raise TrainingError(
                "the teacher has other classes than the student",
                found=f"{taught} classes in the teacher, {self.student.num_classes} in the student",
                fix="take a teacher that knows every class of the student by name",
            )
        if not self.strides:
            raise TrainingError(
                "the teacher has no level of the student's",
                found=f"strides {self.spec.strides} in the teacher, {self.student.strides} in the student",
                fix="take a teacher that predicts on maps of the same sizes",
            )
        self.projectors: nn.ModuleDict | None = None
        if config.feature_weight or config.projector_weight:
            self.projectors = self._projectors(student, seed)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the teacher's input."""
        found: Preprocessing = self.spec.preprocessing
        return found

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> TrainOutput:
        """What the teacher says to its own network input (B, 3, H, W), about the student's classes."""
        with self.clock:
            output = self._answer(pixels)
        return output if self.classes is None else output._replace(scores=output.scores[..., self.classes])

    def loss(self, own: TrainOutput, taught: TrainOutput, size: tuple[int, int], progress: float) -> DetectionLoss:
        """The weighted parts ``distill_…`` of one batch; those of weight 0 are left out.

        Args:
            own, taught: what student and teacher answer to the same images in training form.
            size: height and width of the network input.
            progress: share of the training that is done, 0..1.

        Raises:
            TrainingError: the answers are of other points.
        """
        config = self.config
        mine, theirs, grid = self._common(own.scores.shape[1], taught.scores.shape[1], size)
        scores, said = own.scores[:, mine].float(), taught.scores[:, theirs].float()
        best = said.amax(-1)
        seen = best >= SEEN
        content = (best * seen).sum(-1).clamp(min=1)
        sums = self._map_sums(own.features, taught.features, best, content, grid)
        if config.class_weight:
            sums["distill_class"] = class_divergence(scores, said, config.answer_temperature) * config.class_weight
        if config.box_weight:
            of_points = self._box_divergence(own.distances[:, mine], taught.distances[:, theirs], seen, grid)
            sums["distill_box"] = (of_points * best[seen]).sum() * config.box_weight
        decay = decayed(config.final_factor, progress)
        return DetectionLoss({name: value * decay for name, value in sums.items()}, content.sum())

    # --- scores and boxes --------------------------------------------------------------------------------------------

    def _common(self, own: int, taught: int, size: tuple[int, int]) -> tuple[Points, Points, AnchorGrid]:
        """Which of their points both have, and the grid of these."""
        if own == taught and self.student.strides == self.spec.strides:
            return slice(None), slice(None), grid_of(size, self.student.strides, self.device)
        found: list[Tensor] = []
        for spec, points in ((self.student, own), (self.spec, taught)):
            counts = grid_of(size, spec.strides, self.device).counts
            if sum(counts) != points:
                raise TrainingError(
                    "the answers of student and teacher are of other points",
                    found=f"{points} boxes of {spec.name}, {sum(counts)} cells in its levels {spec.strides}",
                    fix="take a teacher that says one box for each cell of its levels",
                )
            numbers = torch.arange(points, device=self.device).split(counts)
            found.append(torch.cat([numbers[spec.strides.index(stride)] for stride in self.strides]))
        return found[0], found[1], grid_of(size, self.strides, self.device)

    def _box_divergence(self, own: Tensor, taught: Tensor, seen: Tensor, grid: AnchorGrid) -> Tensor:
        """How far the boxes of the P points that are ``seen`` are apart, shape (P,)."""
        mine, theirs = self.objectives
        if mine.bins and mine.bins == theirs.bins:
            sides, others = (raw[seen].float().unflatten(-1, (4, mine.bins)) for raw in (own, taught))
            return side_divergence(sides, others, self.config.answer_temperature)
        return iou_loss(mine.corners(own.float(), seen, grid), theirs.corners(taught.float(), seen, grid), "giou")

    # --- maps --------------------------------------------------------------------------------------------------------

    def _projectors(self, student: Detector, seed: int) -> nn.ModuleDict:
        """By the number of the student's map what makes its channels the teacher's, where that is needed."""
        side = 2 * max(self.spec.strides[-1], self.student.strides[-1])
        size = self.student.only_size or self.spec.only_size or (side, side)
        image = torch.zeros(1, 3, *size, device=self.device)
        with torch.no_grad():
            own, taught = copy.deepcopy(student).eval().features(image), self.model.features(image)
        pairs = paired(own, taught)
        if not pairs:
            raise TrainingError(
                "no neck map of the teacher has the size of one of the student's",
                found=f"{[tuple(maps.shape[2:]) for maps in taught]}, {[tuple(maps.shape[2:]) for maps in own]}",
                fix="set feature_weight and projector_weight to 0",
            )
        with seeded(seed):
            made = {
                str(mine): projector(own[mine].shape[1], taught[theirs].shape[1])
                for mine, theirs in pairs
                if self.config.projector_weight or own[mine].shape[1] != taught[theirs].shape[1]
            }
        return nn.ModuleDict(made).to(self.device)

    def _map_sums(
        self, own: Sequence[Tensor], taught: Sequence[Tensor], best: Tensor, content: Tensor, grid: AnchorGrid
    ) -> dict[str, Tensor]:
        """The parts of the neck's maps."""
        if self.projectors is None:
            return {}
        channels, places = best.new_zeros(len(best)), best.new_zeros(len(best))
        for mine, theirs in paired(own, taught):
            a, b = own[mine].float(), taught[theirs].float()
            pair = a, b
            if str(mine) in self.projectors:
                pair = self.projectors[str(mine)](a), b / b.square().mean((1, 2, 3), keepdim=True).add(EPS).sqrt()
            if self.config.feature_weight:
                compared = (a, b) if a.shape == b.shape else pair
                channels = channels + channel_divergence(*compared, self.config.temperature)
            if self.config.projector_weight:
                places = places + map_error(*pair, self._weights(best, b, grid))
        sums = {}
        if self.config.feature_weight:
            sums["distill_features"] = (channels * content).sum() * self.config.feature_weight
        if self.config.projector_weight:
            sums["distill_projected"] = places.sum() * self.config.projector_weight
        return sums

    def _weights(self, best: Tensor, maps: Tensor, grid: AnchorGrid) -> Tensor:
        """The best scores (B, N) at the positions of a map: (B, H, W)."""
        height, width = maps.shape[2:]
        if best.shape[1] == len(grid.points) and height * width in grid.counts:
            return best.split(grid.counts, 1)[grid.counts.index(height * width)].unflatten(1, (height, width))
        raise TrainingError(
            "the teacher's scores belong to no places of its neck's maps",
            found=f"a map of {height}x{width}, {best.shape[1]} boxes", fix="set projector_weight to 0",
        )  # fmt: skip


class Clock:
    """Adds up the seconds of what runs under it, without holding up a GPU before they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = 0.0
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self.cuda:
            self.spans.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self.spans[-1][0].record()
        else:
            self.seconds -= time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.spans[-1][1].record()
        else:
            self.seconds += time.perf_counter()

    def read(self) -> float:
        """The seconds since the last reading."""
        if self.spans:
            torch.cuda.synchronize()
        found = self.seconds + sum(start.elapsed_time(end) for start, end in self.spans) / 1000
        self.seconds, self.spans = 0.0, []
        return found


def decayed(final: float, progress: float) -> float:
    """A cosine from 1 at ``progress`` 0 to ``final`` at 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def class_divergence(scores: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2`` times the sum of ``KL(taught || scores)`` over all points and classes, with logits divided by T.

    The scores come from sigmoids, not from one softmax, so every class is a yes-or-no distribution. (A softmax over
    them would have nothing to teach to a detector of one class.)
    """
    own, other = (_tempered(values, temperature) for values in (scores, taught))
    yes = other.yes * (other.log_yes - own.log_yes)
    no = (1 - other.yes) * (other.log_no - own.log_no)
    return (yes + no).sum() * temperature**2


@dataclass(frozen=True, eq=False)
class _Answer:
    """Scores at a temperature, and the logarithms of them and of what is left to 1."""

    yes: Tensor
    log_yes: Tensor
    log_no: Tensor


def _tempered(scores: Tensor, temperature: float) -> _Answer:
    """Logarithms come from logits: below 1 temperatures make scores that are 0 or 1 as they are rounded."""
    clamped = scores.clamp(EPS, 1 - EPS)
    if temperature == 1:
        return _Answer(clamped, clamped.log(), torch.log1p(-clamped))
    logits = clamped.logit() / temperature
    return _Answer(logits.sigmoid(), nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits))


def side_divergence(logits: Tensor, taught: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of the bins that raw sides are logits of, (P, 4, bins) to (P,).

    That is ``T^2`` times the mean over the four sides of ``KL(taught || own)``, with logits divided by T.
    """
    own, other = (values.div(temperature).log_softmax(-1) for values in (logits, taught))
    return (other.exp() * (other - own)).sum(-1).mean(-1) * temperature**2


def paired(own: Sequence[Tensor], taught: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Which of two detectors' maps (B, C, H, W) show the same places, as pairs of numbers: maps of equal sizes."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, maps in enumerate(taught):
        if maps.ndim == 4:
            numbers.setdefault(tuple(maps.shape[2:]), []).append(number)
    sizes = [tuple(maps.shape[2:]) if maps.ndim == 4 else () for maps in own]
    return [(mine, numbers[size].pop(0)) for mine, size in enumerate(sizes) if numbers.get(size)]


def projector(own: int, taught: int) -> nn.Sequential:
    """Maps a student's channels to its teacher's, position by position."""
    return nn.Sequential(nn.Conv2d(own, taught, 1), nn.ReLU(), nn.Conv2d(taught, taught, 1))


def map_error(own: Tensor, taught: Tensor, weights: Tensor) -> Tensor:
    """The sum over positions of weights (B, H, W) times the mean squared error of maps (B, C, H, W): shape (B,)."""
    return ((own - taught).square().mean(1) * weights).sum((1, 2))


def channel_divergence(own: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """``T^2 / C * sum over channels of KL(p || q)`` for maps (B, C, H, W): shape (B,).

    p and q are the softmax over the H W positions of a channel of ``taught / T`` and ``own / T``: what counts is where
    a channel looks, not how large its values are (Shu et al., "Channel-wise Knowledge Distillation for Dense
    Prediction", 2011.13256, section 3.2).
    """
    log_q, log_p = (maps.flatten(2).div(temperature).log_softmax(-1) for maps in (own, taught))
    divergence = (log_p.exp() * (log_p - log_q)).sum((1, 2))
    return divergence * (temperature**2 / own.shape[1])
