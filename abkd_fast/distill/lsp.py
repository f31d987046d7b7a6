"""LSP: local structure preserving."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from abkd_fast import ops
from abkd_fast._autocast import widened, without_autocast
from abkd_fast.capture import Capture
from abkd_fast.distill._rows import check_weight, graph_among, student_layers, teacher_layer
from abkd_fast.distill._similarity import check_kernel
from abkd_fast.distill.objective import Objective
from abkd_fast.graph import CSRGraph
from abkd_fast.teacher import TeacherCache


class LSP(Objective):
    r"""weight / N * sum_v KL(P^T_v || P^S_v), P_v[u] = softmax over u in N(v) of k(h_v, h_u).

    h is the last hidden layer and k a kernel (``ops.neighbor_kl``, which this is, value and
    gradient, with nothing of size E x d). (Yang et al., arXiv 2003.10477, equations 3 to 7; weight
    as Joshi et al., arXiv 2111.04964, use it.) Neighbours are a node's row of the graph; in
    mini-batches the edges among the batch's nodes count. Of a teacher on all nodes the
    log-probabilities are kept, a number for each edge.

    Args:
        kernel: "rbf", "cosine", "poly" or "l2".
        c: of "poly".
        power: of "poly".
        weight: published for graphs: 100.
    """

    def __init__(
        self, kernel: str = "rbf", c: float = 0.0, power: int = 2, weight: float = 100.0
    ) -> None:
        super().__init__()
        self.kernel = check_kernel(kernel, c, power)
        self.weight = check_weight("weight", weight)
        self._target: tuple[TeacherCache, Tensor] | None = None

    def setup(
        self, teacher: TeacherCache, student_widths: Sequence[int], graph: CSRGraph | None
    ) -> None:
        """Keep the graph."""
        del teacher
        student_layers("LSP", list(student_widths))
        if graph is None:
            raise ValueError("LSP needs the graph in setup, got None")
        self.graph = graph
        self._target = None

    @without_autocast
    def forward(
        self, student: Capture, teacher: TeacherCache, nodes: Tensor | None = None
    ) -> Tensor:
        """Divergence of the neighbourhoods of the nodes at hand."""
        found = widened(student.states[-1])
        graph = graph_among("LSP", student, self.graph, nodes)
        if nodes is None:
            target = self._log_target(teacher).to(found.dtype)
            loss = ops.neighbor_kl(graph, found, log_target=target, **self.kernel)
        else:
            wanted = teacher_layer(teacher, -1, nodes).to(found.dtype)
            loss = ops.neighbor_kl(graph, found, wanted, **self.kernel)
        self.scalars = {"lsp": loss.detach()}
        return self.weight * loss

    def _log_target(self, teacher: TeacherCache) -> Tensor:
        """The teacher's log-probabilities [E], computed once a teacher."""
        if self._target is None or self._target[0] is not teacher:
            state = teacher_layer(teacher, -1)
            target = ops.neighbor_log_softmax(self.graph, state, **self.kernel)
            self._target = teacher, target
        return self._target[1]

    def extra_repr(self) -> str:
        """Settings."""
        return ", ".join(f"{k}={v!r}" for k, v in {**self.kernel, "weight": self.weight}.items())
