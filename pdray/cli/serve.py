"""``pdray serve CONFIG``: deploys the application, says when it is ready, and takes it down."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdray.cli.interruption import Interruption
from pdray.cli.progress import Progress
from pdray.core.errors import PdrayError

if TYPE_CHECKING:
    from pdray.config import PdrayConfig
    from pdray.serve.ray_session import RaySession

EXIT_ERROR = 1


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    command = commands.add_parser(
        "serve",
        help="serve a model over OpenAI's API",
        description="Serve a model over OpenAI's API, until Ctrl-C.",
    )
    command.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/demo.yaml")
    command.add_argument("--host", help="address to listen on, over the config's")
    command.add_argument("--port", type=int, help="port to listen on, over the config's")
    command.add_argument(
        "--address", help="Ray cluster to use (default: RAY_ADDRESS, else a local Ray of its own)"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pdray.config import ray_address

    say = Progress()
    config = config_of(args)
    address = args.address or ray_address()
    interruption = Interruption(say)
    interruption.take_signals()
    session = _open(config, address, say)
    interruption.take_signals()
    try:
        return _serve(config, session, say, interruption)
    finally:
        # Nothing may cut this short: it ends the processes.
        interruption.ignore_signals()
        session.close()
        say("stopped")


def config_of(args: argparse.Namespace) -> PdrayConfig:
    """The file, with what the command line has over it; checked as a whole."""
    from pdray.config import load_config, parse_config

    config = load_config(args.config)
    over = {key: value for key in ("host", "port") if (value := getattr(args, key)) is not None}
    if not over:
        return config
    data = config.model_dump(mode="json")
    return parse_config(data | {"serve": data["serve"] | over}, f"{args.config} and command line")


def ready_line(config: PdrayConfig) -> str:
    from pdray.serve.address import url_of

    url = url_of(config)
    body = {"model": config.model_name, "prompt": "The capital of France is", "max_tokens": 32}
    return (
        f"pdray is ready at {url}   try: curl {url}/v1/completions "
        f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )


def _open(config: PdrayConfig, address: str | None, say: Progress) -> RaySession:
    """What can be done before anything has to be taken down again."""
    from pdray.model_source import resolve_model
    from pdray.serve.address import check_port_is_free
    from pdray.serve.keys import read_keys
    from pdray.serve.ray_session import open_ray

    if address is None:
        check_port_is_free(config.serve.host, config.serve.port)
        if config.serve.keys_file is not None:
            read_keys(Path(config.serve.keys_file))
    resolve_model(config.model, say)
    session = open_ray(config, address, say)
    say(f"logs of all processes: {session.logs}")
    return session


def _serve(
    config: PdrayConfig, session: RaySession, say: Progress, interruption: Interruption
) -> int:
    """From the deployment's start to its end; a second Ctrl-C cuts the end short."""
    from pdray.serve.deployment import Deployment  # not before: it reads what open_ray has set

    deployment = Deployment(config, session)
    exit_status = 0
    with contextlib.suppress(KeyboardInterrupt):
        try:
            deployment.start(say)
            print(ready_line(config), flush=True)
            interruption.wait()
        except Exception as error:
            if interruption.count > 0:
                return exit_status  # it is what a library has made of the interrupt
            if not isinstance(error, PdrayError):
                raise
            say(f"failed: {error}")
            exit_status = EXIT_ERROR
        finally:
            # Ray prints an error when Serve's controller ends while asked to end.
            with contextlib.redirect_stdout(io.StringIO()):
                deployment.stop()
    return exit_status
