"""How many samples are answered together, so that their batch fits into the memory."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded
    from tpcal.calibrate.inputs.samples import Samples

_LOG = logging.getLogger(__name__)


def answers_at_once(
    loaded: Loaded, samples: Samples, most: int, memory: int | None, max_new_tokens: int
) -> int:
    """The number of samples to answer together; fewer than ``most`` are logged with the memory.

    Args:
        loaded: The model, on its device.
        samples: The samples to answer.
        most: Largest number.
        memory: Most bytes on the device, including the weights; None takes what is free.
        max_new_tokens: Longest answer, in tokens.

    Raises:
        UsageError: The memory leaves no room for one sample.
    """
    from tpcal.calibrate import memory_needs

    need = memory_needs.of_answers(loaded, memory_needs.longest(loaded, samples), max_new_tokens)
    run = memory_needs.arranged(loaded, need, 0, most, memory)
    if run.batch_size < min(most, len(samples)):
        _LOG.info("%s", run.said)
    return run.batch_size
