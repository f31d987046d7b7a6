"""What is predicted: the loss on labels, the metrics of a prediction, and how labels must look."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from abkd_fast import ops

METRICS = {
    "acc": "accuracy",
    "micro_f1": "micro-F1",
    "macro_f1": "macro-F1",
    "roc_auc": "ROC-AUC",
}


@dataclass(frozen=True)
class Task(ABC):
    """One kind of prediction; rows are nodes, or graphs for graph-level data.

    Attributes:
        name: multiclass, multilabel or binary.
        metric: the one that chooses the best epoch, one of :data:`METRICS`, in percent.
    """

    name: str
    metric: str

    def check_labels(self, y: Tensor, rows: int) -> None:
        """Raise ValueError unless y fits this task and has ``rows`` rows."""
        if y.size(0) != rows:
            raise ValueError(f"y must have N={rows} rows as the data, got {y.size(0)}")

    def num_outputs(self, y: Tensor) -> int:
        """Columns that class scores must have for these labels."""
        return y.size(1)

    def labelled(self, y: Tensor) -> Tensor:
        """[N] bool: rows with a label."""
        return ~y.isnan().all(1)

    def loss(self, logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """Loss of class scores [N, C] against labels on the rows in ``mask``, a scalar."""
        return _bernoulli_loss(logits, y, mask)

    def assess(self, logits: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, float]:
        """(``loss``, ``scores()[metric]``) for every epoch, without the other metrics."""
        return self.loss(logits, y, mask), self.fast_score(logits, y, mask)

    @abstractmethod
    def fast_score(self, logits: Tensor, y: Tensor, mask: Tensor) -> float:
        """``scores()[metric]``, without the other metrics."""

    @abstractmethod
    def scores(self, logits: Tensor, y: Tensor, mask: Tensor) -> dict[str, float]:
        """All metrics of the rows in ``mask``, in percent.

        Raises:
            ValueError: a metric is not defined on these labels.
        """

    def _check_floats(self, y: Tensor) -> None:
        ok = y.dim() == 2 and y.is_floating_point() and y.size(1) > 0
        if not ok:
            raise ValueError(
                f"y must be float [N, C] for task {self.name!r}, got {y.dtype}{list(y.shape)}; "
                "1 = yes, 0 = no, NaN = no label; a single column is y[:, None]"
            )
        if not bool(((y == 0) | (y == 1) | y.isnan()).all()):
            raise ValueError("y must hold 0, 1 or NaN (no label), got other values")


class _Multiclass(Task):
    """y [N] int64, one class a row, -1 = no label; cross-entropy; accuracy and macro-F1.

    Macro-F1 is the mean over the classes that are labelled or predicted.
    """

    def check_labels(self, y: Tensor, rows: int) -> None:
        if y.dim() != 1 or y.dtype != torch.int64:
            raise ValueError(
                f"y must be int64, got {str(y.dtype).removeprefix('torch.')}, shape "
                f"{list(y.shape)}; with task='multilabel' or 'binary' it is float [N, C]"
            )
        super().check_labels(y, rows)

    def num_outputs(self, y: Tensor) -> int:
        return int(y.max()) + 1

    def labelled(self, y: Tensor) -> Tensor:
        return y >= 0

    def loss(self, logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return ops.kl_div(logits, y, mask)[0]

    def assess(self, logits: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, float]:
        loss, correct = ops.kl_div(logits, y, mask)  # one pass, nothing of the size of a column
        return loss, 100.0 * float(correct / mask.count_nonzero())

    def fast_score(self, logits: Tensor, y: Tensor, mask: Tensor) -> float:
        return 100.0 * float((logits.argmax(1) == y)[mask].double().mean())

    def scores(self, logits: Tensor, y: Tensor, mask: Tensor) -> dict[str, float]:
        truth, guess = y[mask], logits[mask].argmax(1)
        # 2 TP / (2 TP + FP + FN) a class. Not scikit-learn's, so that a training needs torch,
        # numpy and scipy alone.
        classes = logits.size(1)
        hits = truth[truth == guess].bincount(minlength=classes).double()
        counts = truth.bincount(minlength=classes) + guess.bincount(minlength=classes)
        macro = (2.0 * hits / counts)[counts > 0].mean()
        return {"acc": self.fast_score(logits, y, mask), "macro_f1": 100.0 * float(macro)}


class _Multilabel(Task):
    """y [N, C] float, any number of classes a row; binary cross-entropy; micro- and macro-F1.

    A class is predicted where its score is above 0 (probability above a half). Rows without a
    label for every class count only in the loss.
    """

    def check_labels(self, y: Tensor, rows: int) -> None:
        self._check_floats(y)
        super().check_labels(y, rows)

    def fast_score(self, logits: Tensor, y: Tensor, mask: Tensor) -> float:
        whole = mask & ~y.isnan().any(1)
        truth, guess = y[whole] > 0.5, logits[whole] > 0
        total = int(truth.count_nonzero() + guess.count_nonzero())
        return 200.0 * int((truth & guess).count_nonzero()) / total if total else 0.0

    def scores(self, logits: Tensor, y: Tensor, mask: Tensor) -> dict[str, float]:
        from sklearn.metrics import f1_score

        whole = mask & ~y.isnan().any(1)
        truth, guess = y[whole].cpu().numpy() > 0.5, (logits[whole] > 0).cpu().numpy()
        if not len(truth):
            raise ValueError("y must label every class of some row in each mask for micro-F1")
        kinds = ("micro", "macro")
        f1 = {kind: f1_score(truth, guess, average=kind, zero_division=0.0) for kind in kinds}
        return {f"{kind}_f1": 100.0 * float(value) for kind, value in f1.items()}


class _Binary(Task):
    """y [N, T] float, T yes-or-no questions, NaN = not known; binary cross-entropy; ROC-AUC.

    ROC-AUC is the mean over the questions that have both answers among the rows, and accuracy the
    share of right answers (as OGB's evaluator).
    """

    def check_labels(self, y: Tensor, rows: int) -> None:
        self._check_floats(y)
        super().check_labels(y, rows)

    def fast_score(self, logits: Tensor, y: Tensor, mask: Tensor) -> float:
        """By ranks: scikit-learn's curve takes milliseconds a question, an epoch may take less."""
        from scipy.stats import rankdata

        truth, guess = y[mask].cpu().numpy(), logits[mask].detach().float().cpu().numpy()
        areas = []
        for column, given in zip(truth.T, guess.T, strict=True):
            yes, no = given[column == 1], given[column == 0]
            if len(yes) and len(no):
                below = rankdata(np.concatenate([yes, no]))[: len(yes)].sum()
                areas.append((below - len(yes) * (len(yes) + 1) / 2) / (len(yes) * len(no)))
        return 100.0 * float(np.mean(areas)) if areas else 0.0

    def scores(self, logits: Tensor, y: Tensor, mask: Tensor) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        truth = y[mask].double().cpu().numpy()
        guess = logits[mask].detach().double().cpu().numpy()
        known = ~np.isnan(truth)
        areas = [
            roc_auc_score(truth[rows, task], guess[rows, task])
            for task, rows in enumerate(known.T)
            if len(np.unique(truth[rows, task])) == 2
        ]
        if not areas:
            raise ValueError("y must have both 0 and 1 in each mask for ROC-AUC, got one of them")
        right = (truth == (guess > 0))[known]
        return {"roc_auc": 100.0 * float(np.mean(areas)), "acc": 100.0 * float(right.mean())}


MULTICLASS = _Multiclass("multiclass", "acc")
MULTILABEL = _Multilabel("multilabel", "micro_f1")
BINARY = _Binary("binary", "roc_auc")
TASKS = {task.name: task for task in (MULTICLASS, MULTILABEL, BINARY)}


def _bernoulli_loss(logits: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are known: -y log s(z) - (1-y) log s(-z)."""
    counts = mask[:, None] & ~y.isnan()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    target = torch.where(counts, y, 0.0).to(logits.dtype)
    # of masked entries too, but times 0: a gather would make the host wait for the mask
    terms = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target, weight=counts.to(logits.dtype), reduction="sum"
    )
    return terms / counts.count_nonzero()
