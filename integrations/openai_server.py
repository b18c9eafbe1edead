"""transformers' own OpenAI server, with a model that runs a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tpcal.plans.extras import needs

if TYPE_CHECKING:
    from tpcal.calibrate.inputs.models import Loaded


@needs("serve")
def openai_server(
    loaded: Loaded, *, host: str, port: int, seed: int | None = None, in_thread: bool = False
) -> Any:
    """Serves a model, to which a plan may be applied, as `transformers serve` does.

    Requests name the model as the user named it, with the revision on the Hub if one was named. It
    returns when the server is stopped.

    Args:
        loaded: The model.
        host: Address to listen at.
        port: Port to listen at.
        seed: Seed of sampling; None leaves it.
        in_thread: Whether to return at once with the server, which `kill_server` then stops.

    Raises:
        UsageError: Packages of the extra ``serve`` are not installed.

    Example:
        >>> openai_server(loaded, host="localhost", port=8000)  # doctest: +SKIP
    """
    from transformers.cli.serve import Serve
    from transformers.cli.serving import model_manager

    plain: Any = model_manager.ModelManager

    class PlanModelManager(model_manager.ModelManager):
        """Knows one model, which is loaded already."""

        def process_model_name(self, model_id: str) -> str:
            return model_id

        def _load_processor(self, *args: Any, **kwargs: Any) -> Any:
            return loaded.processor

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            return loaded.model

    # The server names the class of its manager nowhere but in this module.
    model_manager.ModelManager = PlanModelManager
    try:
        revision = loaded.identity.revision
        name = f"{loaded.name}@{revision}" if revision else loaded.name
        return Serve(name, host=host, port=port, default_seed=seed, non_blocking=in_thread)
    finally:
        model_manager.ModelManager = plain
