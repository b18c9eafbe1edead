"""One step of a served model in which visual tokens run: makes the cuts of a plan.

The tokens of all requests stand side by side in one row, without padding. A *column* counts them
as a layer gets them, and a *place* counts the tokens of one request's prompt. Tokens of a request
are in order.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tpcal.integrations.vllm.image_tokens import ImageColumns, parts, tokens_of
from tpcal.integrations.vllm.question import PromptColumns, QuestionReader
from tpcal.integrations.vllm.ranks import ALONE, Ranks
from tpcal.integrations.vllm.stages import Chunk
from tpcal.plans.executor import merging
from tpcal.plans.executor.cutting import PreparedCut
from tpcal.plans.plan_records import Plan
from tpcal.plans.selectors.base import checked


@dataclass(frozen=True)
class States:
    """What a decoder layer gets of n tokens. The state of a token is hidden plus residual."""

    positions: Tensor
    """[n] or, with M-RoPE, [3, n]."""
    hidden: Tensor
    """[n, D]."""
    residual: Tensor | None
    """[n, D]; None before the first layer."""
    read: Tensor | None = None
    """[n, E] queries and keys at the layer before; None if the cut does not read them."""
    deepstack: Tensor | None = None
    """[n, F, D] what is added after the first F layers; None if the model adds nothing."""
    sizes: Tensor | None = None
    """[n] number of original tokens that each one stands for; None if each is one."""

    @property
    def _others(self) -> tuple[Tensor | None, ...]:
        return self.residual, self.read, self.deepstack, self.sizes

    def take(self, columns: Tensor) -> States:
        """The states of some tokens; always a copy."""
        return States(
            self.positions[..., columns],
            self.hidden[columns],
            *(None if other is None else other[columns] for other in self._others),
        )

    def first(self, n: int) -> States:
        """The states of the first ``n`` tokens."""
        return States(
            self.positions[..., :n],
            self.hidden[:n],
            *(None if other is None else other[:n] for other in self._others),
        )

    def followed_by(self, others: Sequence[States]) -> States:
        """These states and then those of others."""
        every = (self, *others)
        return States(
            torch.cat([s.positions for s in every], dim=-1),
            torch.cat([s.hidden for s in every]),
            *map(_joined, zip(*(s._others for s in every), strict=True)),
        )

    def full(self) -> Tensor:
        """[n, D] the states of the tokens, as transformers' layers get them."""
        return self.hidden if self.residual is None else self.hidden + self.residual

    def replaced(self, columns: Tensor, states: Tensor, sizes: Tensor | None = None) -> States:
        """The same with other states [k, D], and sizes [k] if given, at ``columns`` [k]."""
        hidden = self.hidden.index_put((columns,), states)
        residual = None if self.residual is None else self.residual.index_fill(0, columns, 0)
        own = self.sizes
        if sizes is not None:
            own = self.sizes_or_ones().index_put((columns,), sizes)
        return replace(self, hidden=hidden, residual=residual, sizes=own)

    def sizes_or_ones(self) -> Tensor:
        """[n] the sizes."""
        if self.sizes is not None:
            return self.sizes
        return torch.ones(len(self.hidden), device=self.hidden.device)


class PruningStep:
    """The cuts of one step.

    Args:
        plan: The plan.
        cuts: Its cuts by layer, from `tpcal.plans.executor.cutting.prepare`.
        chunks: What runs, in the order of the row.
        waiting: States of tokens that wait at the first cut, by request. They are taken out and
            put in as images are completed and begun.
        reader: Reads the question for selectors that look at it; None if none does.
        ranks: The processes that make the same step with other heads.

    Raises:
        RuntimeError: A chunk starts inside an image whose first tokens do not wait, because the
            engine never ran them.
    """

    def __init__(
        self,
        plan: Plan,
        cuts: Mapping[int, PreparedCut],
        chunks: Sequence[Chunk],
        waiting: MutableMapping[str, States],
        reader: QuestionReader | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.plan = plan
        self.chunks = chunks
        self.n_rows = sum(chunk.n_tokens for chunk in chunks)
        self._cuts = cuts
        self._numbers = {layer: number for number, layer in enumerate(sorted(cuts))}
        self._waiting = waiting
        self._reader = reader
        self._ranks = ranks
        self._read: Tensor | None = None
        self._deepstack: Tensor | None = None
        self._sizes: Tensor | None = None
        self._places: list[np.ndarray] | None = None
        self._positions: Tensor | None = None

    def saw(self, query: Tensor, key: Tensor) -> None:
        """Notes what the attention of the layer before a cut computed.

        Args:
            query: [m, H d] of the tokens still there, perhaps followed by filler; of the heads
                that this process has.
            key: [m, Hkv d], likewise.
        """
        n = self.n_rows if self._places is None else sum(map(len, self._places))
        self._read = torch.cat((query[:n].flatten(1), key[:n].flatten(1)), dim=1)

    def adds(self, features: Sequence[Tensor]) -> None:
        """Notes what the model adds to all tokens of the step after its first layers.

        Args:
            features: [n, D] for each of these layers.
        """
        self._deepstack = torch.stack(list(features), dim=1)

    def added_after(self, layer: int) -> Tensor:
        """[m, D] what the model adds to the tokens still there after ``layer``."""
        assert self._deepstack is not None
        return self._deepstack[:, layer]

    def before_layer(
        self, layer: int, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The positions, states and residual for ``layer``, after its cut if it has one.

        Args:
            layer: Number of the layer that runs next.
            positions: [n] or [3, n] positions of all tokens of the step, as the model passes them.
            hidden: [m, D] states of the tokens still there, perhaps followed by filler.
            residual: [m, D] what is added to them; None before the first layer.
        """
        if layer in self._cuts:
            given = States(positions, hidden, residual, self._read, self._deepstack, self._sizes)
            states, self._read = self._entering(given), None
            states = self._cut(self._cuts[layer], states)
            self._deepstack, self._sizes = states.deepstack, states.sizes
            self._positions, hidden, residual = states.positions, states.hidden, states.residual
        return positions if self._positions is None else self._positions, hidden, residual

    def full_length(self, states: Tensor) -> Tensor:
        """[n, D] the model's output at all tokens of the step, with zeros where tokens left.

        Args:
            states: [m, D] output of the model at the tokens still there.
        """
        if self._places is None:
            return states
        rows, columns, begin, start = [], [], 0, 0
        for chunk, places in zip(self.chunks, self._places, strict=True):
            here = np.flatnonzero(places >= chunk.first)
            rows.append(start + places[here] - chunk.first)
            columns.append(begin + here)
            begin, start = begin + len(places), start + chunk.n_tokens
        full = states.new_zeros(self.n_rows, states.shape[1])
        full[_index(rows, states)] = states[_index(columns, states)]
        return full

    def _entering(self, given: States) -> States:
        """The states at a cut; at the first one, those that wait are taken out and put in."""
        if self._places is not None:
            assert self._positions is not None
            return replace(given, positions=self._positions)
        n = self.n_rows  # an engine may put filler behind them
        states, hidden = given.first(n), given.hidden
        came, columns, stays = [], [], []
        start, behind = 0, n
        for chunk in self.chunks:
            own = np.arange(chunk.first, chunk.end) - chunk.first + start
            earlier = self._came(chunk)
            if earlier is not None:
                came.append(earlier)
                n_came = len(earlier.hidden)
                own = np.concatenate((np.arange(behind, behind + n_came), own))
                behind += n_came
            n_enter = len(chunk.entering)
            columns.append(own[:n_enter])
            stays.append(own[n_enter:])
            start += chunk.n_tokens
        states = states.followed_by(came) if came else states
        for chunk, rest in zip(self.chunks, stays, strict=True):
            if len(rest):
                self._waiting[chunk.request] = states.take(_index([rest], hidden))
        self._places = [np.arange(c.entering.start, c.entering.stop) for c in self.chunks]
        return states.take(_index(columns, hidden))

    def _came(self, chunk: Chunk) -> States | None:
        """What waited of the image or prompt that the chunk goes on with; None if nothing did."""
        found = self._waiting.pop(chunk.request, None)
        if chunk.begin == chunk.first:
            return None  # a state from before the request started anew is forgotten
        if found is None or len(found.hidden) != chunk.first - chunk.begin:
            raise RuntimeError(
                f"Request {chunk.request} goes on at place {chunk.first}, inside an image or a "
                f"prompt that starts at {chunk.begin}, and the tokens before it did not run here. "
                "A plan runs without KV connectors and with no other cache than vLLM's prefix "
                "cache."
            )
        return found

    def _cut(self, prepared: PreparedCut, states: States) -> States:
        """The survivors of a cut; every image keeps its own share."""
        assert self._places is not None
        images = self._images(self._numbers[prepared.cut.layer])
        if not images:
            return states
        stays = np.ones(len(states.hidden), dtype=bool)
        for image in images:
            stays[image.columns] = False
        if prepared.selector is not None:
            chosen_from = [image for image in images if image.n_keep]
            for part in parts(chosen_from, states.hidden.shape[1]):
                states = self._choose(prepared, states, part, stays)
        ends = np.cumsum([len(places) for places in self._places])[:-1]
        self._places = [
            places[kept] for places, kept in zip(self._places, np.split(stays, ends), strict=True)
        ]
        return states.take(_index([np.flatnonzero(stays)], states.hidden))

    def _choose(
        self,
        prepared: PreparedCut,
        states: States,
        images: Sequence[ImageColumns],
        stays: np.ndarray,
    ) -> States:
        """Marks in ``stays`` [m] what the selector keeps; returns the states, merged ones too."""
        selector, cut = prepared.selector, prepared.cut
        assert selector is not None
        full = states.full()
        tokens, columns = tokens_of(images, cut.layer, full)
        prompts = [image.prompt for image in images if image.prompt is not None]
        if self._reader is not None:
            tokens = self._reader.completed(
                tokens, selector.needs, prompts, columns, full, states.read
            )
        wanted = torch.tensor([image.n_keep for image in images], device=columns.device)
        chosen = checked(selector.select(tokens, wanted), tokens, wanted, cut.selector or "")
        chosen = self._ranks.agreed(chosen)
        stays[columns[chosen].cpu().numpy()] = True
        merged = selector.merged(tokens, chosen)  # a selector's own way comes first
        if merged is not None:
            return states.replaced(columns[chosen], merged[chosen])
        if prepared.merge is None:
            return states
        sizes = states.sizes_or_ones()[columns] * tokens.valid
        found = merging.merged(tokens, chosen, sizes)
        return states.replaced(
            columns[chosen], *(self._ranks.agreed(one[chosen]) for one in found)
        )

    def _images(self, number: int) -> list[ImageColumns]:
        """The images that lose tokens at cut ``number``, with the columns of their tokens."""
        assert self._places is not None
        found, begin = [], 0
        for chunk, places in zip(self.chunks, self._places, strict=True):
            asked = places[places < chunk.together]
            prompt = PromptColumns(begin, asked, chunk.spans) if chunk.together else None
            for span in chunk.complete:
                counts = (span.length, *self.plan.counts(span.length))
                alive, kept = counts[number], counts[number + 1]
                if kept < alive:
                    visual = span.places
                    here = np.flatnonzero(np.isin(places, visual))
                    ranks = np.searchsorted(visual, places[here])
                    found.append(ImageColumns(begin + here, ranks, span.length, kept, prompt))
            begin += len(places)
        return found


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The rows of all parts; None if there are none."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _index(parts: Sequence[np.ndarray], like: Tensor) -> Tensor:
    """[n] int64 the numbers of all parts, on the device of ``like``."""
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(like.device)
