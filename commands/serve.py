"""The command `tpcal serve`."""

from __future__ import annotations

import click

from tpcal import terminal
from tpcal.calibrate.inputs.model_choice import ModelChoice
from tpcal.plans.errors import UsageError
from tpcal.plans.extras import require
from tpcal.workflow.inputs import plan_and_model


@click.command(short_help="Serve a model with a plan at an OpenAI endpoint.")
@click.argument("name", metavar="[MODEL]", required=False)
@click.option(
    "--plan",
    "file",
    required=True,
    metavar="PLAN",
    help="Plan to run with: a file, folder, preset:NAME or org/name.",
)
@click.option("--host", default="localhost", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    default=8000,
    show_default=True,
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port to listen at.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="DEV",
    help="Device to run on, such as cpu, cuda or cuda:1.",
)
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Precision of the weights.",
)
@click.option("--continuous-batching", is_flag=True, help="Refused, with the reason.")
def serve(
    name: str | None,
    file: str,
    host: str,
    port: int,
    device: str,
    dtype: str,
    continuous_batching: bool,
) -> None:
    """Serve MODEL with a plan, for clients of OpenAI's chat API.

    This is the server of 'transformers serve' with the plan applied to its model. MODEL is an
    alias, a Hub id, a folder, or 'embedded'; without it, the model of the plan is served. Requests
    name the model in the same way. Setting TPCAL_OFF=1 serves every request unpruned. The server
    runs until Ctrl-C.

    \b
    Examples:
      tpcal serve --plan plan.yaml
      tpcal serve --plan preset:divprune embedded --port 8001
      curl http://localhost:8001/health
    """
    if continuous_batching:
        raise UsageError(
            "--continuous-batching must be left out to run a plan, because its paged KV cache "
            "holds every token in every layer; use vLLM for it (docs/vllm.md)."
        )
    require("serve")
    from tpcal.integrations.openai_server import openai_server
    from tpcal.plans.executor.handle import apply

    with terminal.progress() as report:
        plan, loaded = plan_and_model(file, ModelChoice(name, device=device, dtype=dtype), report)
    with apply(loaded.model, plan):
        openai_server(loaded, host=host, port=port)
