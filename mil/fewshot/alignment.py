r"""A loss that draws each class's items from different sites (or scanners, or stains) together.

The supervised contrastive loss, with sites. For unit vectors z, an anchor i, its positives P(i), which are
the items of its class at *other* sites, its negatives N(i), which are the items of other classes anywhere,
and a temperature τ:

.. math::

    L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)}
          \log \frac{\exp(z_i \cdot z_p / \tau)}{\sum_{a \in P(i) \cup N(i)} \exp(z_i \cdot z_a / \tau)}

Items of the anchor's class and site are in neither set: that they are alike says nothing of sites. Anchors
without a positive are left out, and the loss is the mean over the others.

P. Khosla, P. Teterwak, C. Wang, A. Sarna, Y. Tian, P. Isola, A. Maschinot, C. Liu, D. Krishnan, "Supervised
Contrastive Learning", NeurIPS 2020 (arXiv:2004.11362), equation 2 (L_out), where the positives are all items
of the anchor's class, and the sum over anchors is not divided by their number.

::

    n  items        L  length of an embedding
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsi.errors import UsageError

TEMPERATURE = 0.1
"""As in the paper's experiments."""


def alignment_loss(
    embeddings: Tensor, labels: Tensor, sites: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """See above. 0, with a gradient of 0, where no class is at two sites.

    Has no branches that depend on values, changes nothing in place, and can be differentiated twice: it may
    stand inside the transforms of `torch.func`.

    Parameters
    ----------
    embeddings
        ``(n, L)`` of any float type and any length: they are divided by their norm here. Of a vector of
        zeros there is no direction; it stays, and is as far from all others as a right angle is.
    labels, sites
        ``(n,)`` numbers of the class and of the site.
    temperature
        τ, above 0: how much the nearest items count for more than others.

    Returns
    -------
    A scalar of the embeddings' type, float32 at least.

    Raises
    ------
    UsageError
        The temperature is not above 0.
    ValueError
        Shapes do not fit.
    """
    if not 0 < temperature < float("inf"):
        raise UsageError(f"a temperature of {temperature:g} is none", action="Give one above 0, such as 0.1")
    if embeddings.ndim != 2 or not labels.shape == sites.shape == embeddings.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (embeddings, labels, sites)]
        raise ValueError(f"embeddings, labels and sites of shapes {shapes} do not fit")
    units = _unit_vectors(embeddings)
    similarities = units @ units.T / temperature  # (n, n)
    same_class = labels[:, None] == labels
    positive = same_class & (sites[:, None] != sites)  # (n, n); never an item and itself
    counts = positive.sum(dim=1)  # (n,)
    anchor = counts > 0
    # Rows that are no anchor's are computed over all items and then dropped: a logarithm of an empty sum
    # would have a gradient of NaN, dropped or not.
    compared = positive | ~same_class | ~anchor[:, None]
    totals = similarities.masked_fill(~compared, -torch.inf).logsumexp(dim=1)  # (n,)
    attracted = torch.where(positive, similarities, 0).sum(dim=1) / counts.clamp(min=1)  # (n,)
    losses = torch.where(anchor, totals - attracted, 0)
    return losses.sum() / anchor.sum().clamp(min=1)


def _unit_vectors(embeddings: Tensor) -> Tensor:
    """``(n, L)`` of norm 1, and of norm 0 where it was."""
    embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    # No square overflows or vanishes. The result does not depend on the peak, so no gradient goes through it.
    peak = embeddings.detach().abs().amax(dim=1, keepdim=True)  # (n, 1)
    scaled = embeddings / torch.where(peak > 0, peak, 1)
    squares = (scaled * scaled).sum(dim=1, keepdim=True)
    return scaled * torch.where(squares > 0, squares, 1).rsqrt()
