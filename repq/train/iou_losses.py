"""Losses between pairs of boxes: ``1 - IoU`` plus a penalty that still has a gradient where boxes don't overlap."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

IouLoss = Literal["giou", "diou", "ciou", "siou"]
EPS = 1e-7  # keeps quotients and roots finite for boxes without extent


def iou_loss(predicted: Tensor, target: Tensor, kind: IouLoss) -> Tensor:
    """Loss of each pair of boxes (…, 4), x1 y1 x2 y2 in any one unit: shape (…).

    - ``giou``: + the share of the enclosing box that neither covers (Rezatofighi et al. 1902.09630).
    - ``diou``: + squared centre distance over squared diagonal of the enclosing box (Zheng et al. 1911.08287).
    - ``ciou``: ``diou`` + ``alpha * v``, v the difference of the aspect angles (same paper, section 4.2).
    - ``siou``: + half of a distance cost, weighted by the angle to the nearest axis, and a shape cost
      (Gevorgyan 2205.12740).
    """
    size_p = predicted[..., 2:] - predicted[..., :2]
    size_t = target[..., 2:] - target[..., :2]
    overlap_min = torch.maximum(predicted[..., :2], target[..., :2])
    overlap_max = torch.minimum(predicted[..., 2:], target[..., 2:])
    overlap = (overlap_max - overlap_min).clamp(min=0).prod(-1)
    union = size_p.prod(-1) + size_t.prod(-1) - overlap + EPS
    iou = overlap / union
    enclosing = torch.maximum(predicted[..., 2:], target[..., 2:]) - torch.minimum(predicted[..., :2], target[..., :2])
    if kind == "giou":
        hull = enclosing.prod(-1) + EPS
        return 1 - iou + (hull - union) / hull
    offset = (target[..., :2] + target[..., 2:] - predicted[..., :2] - predicted[..., 2:]) / 2
    if kind == "siou":
        return 1 - iou + (_distance_cost(offset, enclosing) + _shape_cost(size_p, size_t)) / 2
    penalty = offset.square().sum(-1) / (enclosing.square().sum(-1) + EPS)
    if kind == "ciou":
        penalty = penalty + _aspect_penalty(size_p, size_t, iou)
    return 1 - iou + penalty


def _aspect_penalty(size_p: Tensor, size_t: Tensor, iou: Tensor) -> Tensor:
    angle_p = torch.atan(size_p[..., 0] / (size_p[..., 1] + EPS))
    angle_t = torch.atan(size_t[..., 0] / (size_t[..., 1] + EPS))
    v = 4 / math.pi**2 * (angle_t - angle_p).square()
    with torch.no_grad():
        alpha = v / (v - iou + 1 + EPS)
    return alpha * v


def _distance_cost(offset: Tensor, enclosing: Tensor) -> Tensor:
    """``sum over x, y of 1 - exp(-(2 - sin 2a) * (offset / enclosing)^2)``, a the angle to the nearest axis.

    With s the sine of a, the smaller share of the centre distance, ``sin 2a = 2 s sqrt(1 - s^2)``.
    """
    distance = offset.square().sum(-1).clamp(min=EPS**2).sqrt()
    sine = offset.abs().amin(-1) / distance
    double_sine = 2 * sine * (1 - sine.square()).sqrt()
    ratio = (offset / (enclosing + EPS)).square()
    return (1 - torch.exp((double_sine - 2).unsqueeze(-1) * ratio)).sum(-1)


def _shape_cost(size_p: Tensor, size_t: Tensor) -> Tensor:
    """``sum over w, h of (1 - exp(-|difference| / larger))^4``."""
    difference = (size_p - size_t).abs() / (torch.maximum(size_p, size_t) + EPS)
    return (1 - torch.exp(-difference)).pow(4).sum(-1)
