"""``pdray serve CONFIG``: deploys the application, says when it is ready, and takes it down."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Sequence
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
    command.add_argument(
        "configs",
        metavar="CONFIG",
        nargs="+",
        help="YAML file, such as configs/demo.yaml; of mode service one for each application",
    )
    command.add_argument("--host", help="address to listen on, over the config's")
    command.add_argument("--port", type=int, help="port to listen on, over the config's")
    command.add_argument(
        "--address", help="Ray cluster to use (default: RAY_ADDRESS, else a local Ray of its own)"
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pdray.config import ray_address

    say = Progress()
    configs = configs_of(args)
    address = args.address or ray_address()
    interruption = Interruption(say)
    interruption.take_signals()
    session = _open(configs, address, say)
    interruption.take_signals()
    try:
        return _serve(configs, session, say, interruption)
    finally:
        # Nothing may cut this short: it ends the processes.
        interruption.ignore_signals()
        session.close()
        say("stopped")


def configs_of(args: argparse.Namespace) -> list[PdrayConfig]:
    """The files, with what the command line has over them; each checked as a whole, and whether
    they can be served together. Raises ConfigError."""
    from pdray.config import load_config, parse_config
    from pdray.serve.address import check_side_by_side

    over = {key: value for key in ("host", "port") if (value := getattr(args, key)) is not None}
    configs = []
    for path in args.configs:
        data = load_config(path).model_dump(mode="json")
        data |= {"serve": data["serve"] | over}
        configs.append(parse_config(data, f"{path} and command line" if over else path))
    check_side_by_side(configs)
    return configs


def ready_line(config: PdrayConfig) -> str:
    from pdray.serve.address import url_of

    url = url_of(config)
    return f"pdray is ready at {url}   try: {example_of(config, url)}"


def example_of(config: PdrayConfig, url: str) -> str:
    """A request that this application answers."""
    from pdray.core.snapshot import Role

    if config.phases is Role.DECODE and config.serve.prefill_url is None:
        return f"curl {url}/health"  # a handle is needed for more
    path = "v1/prefill" if config.phases is Role.PREFILL else "v1/completions"
    body = {"model": config.model_name, "prompt": "The capital of France is", "max_tokens": 32}
    return f"curl {url}/{path} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def _open(configs: Sequence[PdrayConfig], address: str | None, say: Progress) -> RaySession:
    """What can be done before anything has to be taken down again."""
    from pdray.model_source import resolve_model
    from pdray.serve.address import check_port_is_free
    from pdray.serve.ray_session import open_ray
    from pdray.serve.trace_exporter import open_tracing

    if address is None:
        check_port_is_free(configs[0].serve.host, configs[0].serve.port)
        for config in configs:
            _read_secrets(config)
        if (tracing := open_tracing()) is not None:  # whether the replicas will be able to
            tracing.close()
    for model in dict.fromkeys(config.model for config in configs):
        resolve_model(model, say)
    session = open_ray(configs, address, say)
    say(f"logs of all processes: {session.logs}")
    return session


def _read_secrets(config: PdrayConfig) -> None:
    """Whether the replicas, which are on this machine, will find them. Raises ConfigError."""
    from pdray.core.cluster_secret import read_secrets
    from pdray.serve.keys import read_keys

    if config.serve.keys_file is not None:
        read_keys(Path(config.serve.keys_file))
    if config.handles.secret_file is not None:
        read_secrets(Path(config.handles.secret_file))


def _serve(
    configs: Sequence[PdrayConfig], session: RaySession, say: Progress, interruption: Interruption
) -> int:
    """From the deployments' start to their end; a second Ctrl-C cuts the end short."""
    from pdray.cli.in_force import lines_of
    from pdray.serve.deployment import Deployment  # not before: it reads what open_ray has set

    deployments = [Deployment(config, session) for config in configs]
    exit_status = 0
    with contextlib.suppress(KeyboardInterrupt):
        try:
            for config in configs:
                for line in lines_of(config):
                    say(line)
            for deployment in deployments:
                deployment.start(say)
            for config in configs:
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
                for deployment in reversed(deployments):
                    deployment.stop()
    return exit_status
