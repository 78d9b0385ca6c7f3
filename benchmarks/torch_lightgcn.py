"""LightGCN (arXiv 2002.02126) in plain torch: the peer that `reclm bench fit` measures beside this project's own.

Written as the published code does it: ID vectors in one table, the whole graph propagated for every batch with
`torch.sparse.mm` (a COO matrix; CSR as an option), the layers' mean, BPR or sampled softmax over given negatives, dense
Adam. With `text`, items' first vectors are a two-layer MLP of text vectors beside the table.

    model = TorchLightGCN(indptr, indices, n_users, n_items, dim=64, n_layers=3)
    seconds, loss = model.epoch(batch_size=4096, loss="bpr", n_negatives=1, seed=0)

Left out: validation, early stopping, negatives that avoid known positives one by one (all are drawn at once and redrawn
where they hit one, three times), anything that a fit has around its epochs.
"""

import time
import warnings

import numpy as np
import torch


class TorchLightGCN:
    """indptr: int64 (n_users + 1,), indices: int (nnz,): CSR of the training interactions. text: float32 (n_items,
    n_in) or None."""

    def __init__(
        self,
        indptr: np.ndarray,
        indices: np.ndarray,
        n_users: int,
        n_items: int,
        *,
        dim: int = 64,
        n_layers: int = 3,
        rate: float = 1e-3,
        layout: str = "coo",
        text: np.ndarray | None = None,
        init: dict[str, np.ndarray] | None = None,
        seed: int = 0,
    ):
        torch.manual_seed(seed)
        self.n_users, self.n_items, self.n_layers = n_users, n_items, n_layers
        self.users = torch.as_tensor(np.repeat(np.arange(n_users), np.diff(indptr)))
        self.items = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        self.known = torch.sort(self.users * n_items + self.items).values
        self.adjacency = self._adjacency(layout)
        self.user_id = torch.nn.Parameter(self._table(n_users, dim, init, "user_id"))
        self.item_id = torch.nn.Parameter(self._table(n_items, dim, init, "item_id"))
        parameters = [self.user_id, self.item_id]
        self.text = None if text is None else torch.as_tensor(text)
        if text is not None:
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(text.shape[1], dim), torch.nn.ReLU(), torch.nn.Linear(dim, dim)
            )
            parameters += self.mlp.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=rate)

    @staticmethod
    def _table(n: int, dim: int, init: dict[str, np.ndarray] | None, name: str) -> torch.Tensor:
        if init is not None:
            return torch.tensor(init[name])
        return torch.nn.init.xavier_uniform_(torch.empty(n, dim))

    def _adjacency(self, layout: str) -> torch.Tensor:
        """D^-1/2 A D^-1/2 of users and items together."""
        n = self.n_users + self.n_items
        rows = torch.cat([self.users, self.items + self.n_users])
        columns = torch.cat([self.items + self.n_users, self.users])
        scale = torch.bincount(rows, minlength=n).clamp(min=1).float().rsqrt()
        values = scale[rows] * scale[columns]
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, (n, n), check_invariants=False
        ).coalesce()
        if layout == "coo":
            return matrix
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return matrix.to_sparse_csr()

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Final vectors of users and items: the mean of the layers."""
        items = self.item_id if self.text is None else self.item_id + self.mlp(self.text)
        layer = torch.cat([self.user_id, items])
        layers = [layer]
        for _ in range(self.n_layers):
            layer = torch.sparse.mm(self.adjacency, layer)
            layers.append(layer)
        mean = torch.stack(layers, dim=1).mean(dim=1)
        return mean[: self.n_users], mean[self.n_users :]

    def negatives(self, users: torch.Tensor, n_negatives: int, generator: torch.Generator) -> torch.Tensor:
        drawn = torch.randint(self.n_items, (len(users), n_negatives), generator=generator)
        for _ in range(3):
            keys = users[:, None] * self.n_items + drawn
            at = torch.searchsorted(self.known, keys).clamp(max=len(self.known) - 1)
            hit = self.known[at] == keys
            drawn[hit] = torch.randint(self.n_items, (int(hit.sum()),), generator=generator)
        return drawn

    def loss(self, kind: str, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        all_users, all_items = self.forward()
        mine = all_users[users]
        positive = (mine * all_items[positives]).sum(1)
        negative = (mine[:, None] * all_items[negatives]).sum(2)
        if kind == "bpr":
            return torch.nn.functional.softplus(negative - positive[:, None]).mean()
        scores = torch.cat([positive[:, None], negative], dim=1)
        return torch.nn.functional.cross_entropy(scores, torch.zeros(len(users), dtype=torch.long))

    def step(self, kind: str, users: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(kind, users, positives, negatives)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def epoch(
        self,
        *,
        batch_size: int = 4096,
        loss: str = "bpr",
        n_negatives: int = 1,
        seed: int = 0,
        max_steps: int | None = None,
    ) -> tuple[float, float]:
        """One pass over the interactions, or its first max_steps batches: (seconds, mean loss)."""
        generator = torch.Generator().manual_seed(seed)
        started = time.perf_counter()
        order = torch.randperm(len(self.users), generator=generator)
        losses = []
        for start in range(0, len(order), batch_size):
            if max_steps is not None and len(losses) == max_steps:
                break
            entries = order[start : start + batch_size]
            users = self.users[entries]
            losses.append(self.step(loss, users, self.items[entries], self.negatives(users, n_negatives, generator)))
        return time.perf_counter() - started, float(np.mean(losses))
