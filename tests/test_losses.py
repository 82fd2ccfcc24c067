"""Losses (Eq. 3, 11, 12) and written out over clips and classes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from s2dlib.losses import detail_loss, s2d_loss, synopsis_loss, topk_hits
from s2dlib.model import Output
from s2dlib.synopsis import topk_mask


def output(B=6, N=7, k=3, snet=True, dnet=True):
    logits = torch.randn(B, N).double() if snet else None
    detail = torch.randn(B, N).double().requires_grad_() if dnet else None
    mask = topk_mask(logits, k) if snet else None
    scores = (detail if dnet else logits).softmax(1) * (1 if mask is None else mask)
    return Output(scores, logits, mask, None, None, None, None, detail)


def log_p(logits, n):
    """log of the softmax, one clip. logits: a list"""
    return logits[n] - math.log(sum(math.exp(v) for v in logits))


def reference(out, labels):
    """L_s and L_d of Eq. 3 and 11, sums over n of every clip, averaged over the clips."""
    loss_s = loss_d = 0.0
    for b, y in enumerate(labels.tolist()):
        for n in range(7):
            if out.logits is not None:
                loss_s -= (n == y) * log_p(out.logits[b].tolist(), n) / len(labels)
            if out.detail_logits is not None:
                s = 1.0 if out.topk_mask is None else out.topk_mask[b, n].item()
                loss_d -= (n == y) * s * log_p(out.detail_logits[b].tolist(), n) / len(labels)
    return loss_s, loss_d


def test_losses_are_equations_3_11_and_12():
    out, labels = output(), torch.randint(0, 7, (6,))
    loss_s, loss_d = reference(out, labels)
    assert 0 < out.topk_mask.gather(1, labels[:, None]).sum() < 6  # some are left out, not all
    assert synopsis_loss(out, labels).item() == pytest.approx(loss_s)
    assert detail_loss(out, labels).item() == pytest.approx(loss_d)
    for alpha in (0.0, 0.1, 2.0):
        assert s2d_loss(out, labels, alpha).item() == pytest.approx(alpha * loss_s + loss_d)
    assert s2d_loss(out, labels).item() == pytest.approx(0.1 * loss_s + loss_d)


def test_losses_unmasked_and_label_smoothing():
    out, labels = output(), torch.randint(0, 7, (6,))
    plain = smooth = 0.0
    for b, y in enumerate(labels.tolist()):
        terms = [log_p(out.detail_logits[b].tolist(), n) for n in range(7)]
        plain -= terms[y] / 6
        smooth -= sum((0.9 * (n == y) + 0.1 / 7) * terms[n] for n in range(7)) / 6
    assert detail_loss(out, labels, masked=False).item() == pytest.approx(plain)
    loss = detail_loss(out, labels, masked=False, label_smoothing=0.1)
    assert loss.item() == pytest.approx(smooth)
    loss_s = synopsis_loss(out, labels, label_smoothing=0.1).item()
    both = s2d_loss(out, labels, 0.5, masked=False, label_smoothing=0.1)
    assert both.item() == pytest.approx(0.5 * loss_s + smooth)


def test_losses_of_bfloat16_logits_are_float32():
    out, labels = output(), torch.randint(0, 7, (6,))
    half = replace(out, logits=out.logits.bfloat16(), detail_logits=out.detail_logits.bfloat16())
    half.topk_mask = out.topk_mask.bfloat16()
    exact = replace(out, logits=half.logits.double(), detail_logits=half.detail_logits.double())
    for loss in (synopsis_loss, detail_loss, s2d_loss):
        ours = loss(half, labels)
        assert ours.dtype == torch.float32
        assert_close(ours.double(), loss(exact, labels), rtol=1e-6, atol=0)
    wide = half.detail_logits.detach().float().requires_grad_()
    narrow = half.detail_logits.detach().requires_grad_()
    for logits in (wide, narrow):
        detail_loss(replace(out, detail_logits=logits), labels).backward()
    assert_close(narrow.grad, wide.grad.bfloat16(), rtol=0, atol=0)  # rounded once, at the end


def test_losses_of_a_network_alone_are_cross_entropy():
    labels = torch.randint(0, 7, (6,))
    alone = output(dnet=False)
    assert s2d_loss(alone, labels).item() == pytest.approx(reference(alone, labels)[0])
    alone = output(snet=False)
    assert s2d_loss(alone, labels).item() == pytest.approx(reference(alone, labels)[1])


def test_detail_loss_masks_clips_outside_topk():
    out = output()
    order = out.logits.argsort(dim=1)
    labels = torch.where(torch.arange(6) < 3, order[:, -1], order[:, 0])  # in, and out
    detail_loss(out, labels).backward()
    grads = out.detail_logits.grad.abs().sum(1)
    assert (grads[:3] > 0).all() and (grads[3:] == 0).all()


# Accuracy


def hit(scores, label, k):
    """Fewer than k other classes score higher, and the score is not zero."""
    return scores[label] > 0 and sum(v > scores[label] for v in scores) < k


@pytest.mark.parametrize("k", [1, 3, 5, 7, 9])
def test_topk_hits_are_their_definition(k):
    scores, labels = torch.rand(200, 7), torch.randint(0, 7, (200,))
    scores[:50, 2] = 0
    expected = [hit(row, y, k) for row, y in zip(scores.tolist(), labels.tolist(), strict=True)]
    assert topk_hits(scores, labels, k).tolist() == expected


def test_topk_hits_of_one_and_of_five():
    scores = torch.eye(6)[[0, 1, 2, 3]] + torch.linspace(0.1, 0.2, 6)
    labels = torch.tensor([0, 1, 2, 0])  # the last one is the least likely
    assert topk_hits(scores, labels, 1).tolist() == [True, True, True, False]
    assert topk_hits(scores, labels, 5).tolist() == [True, True, True, False]
    assert topk_hits(scores, torch.tensor([0, 1, 2, 5]), 5).all()


def test_topk_hits_with_fewer_than_five_classes():
    scores, labels = torch.rand(20, 3) + 0.1, torch.randint(0, 3, (20,))
    assert topk_hits(scores, labels, 5).all()


def test_topk_hits_never_outside_the_mask():
    out = output(B=50, k=2)
    labels = torch.randint(0, 7, (50,))
    inside = out.topk_mask.gather(1, labels[:, None])[:, 0] > 0
    assert torch.equal(topk_hits(out.scores, labels, 5), inside)
    assert not topk_hits(out.scores, labels, 1)[~inside].any()


def test_topk_hits_with_k_five_are_those_of_snet():
    out, labels = output(B=300, N=20, k=5), torch.randint(0, 20, (300,))
    assert torch.equal(
        topk_hits(out.scores, labels, 5), topk_hits(out.logits.softmax(1), labels, 5)
    )
