"""seg-serve: the DICOM node as a command. Nothing heavy is imported before the arguments are known to be good."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ..console import guarded, launch, version_option

if TYPE_CHECKING:
    from .config import Config

FILED = {"peers": "--peer", "state": "--state", "aet": "--aet", "port": "--port", "http_port": "--http-port"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def seg_serve(
    context: typer.Context,
    config: Annotated[str | None, typer.Option("-c", "--config", metavar="FILE.toml", help="Everything: peers, rules, TLS, limits. Excludes the options below.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="For every series: a name from seg-infer --models, or a file that seg-export wrote.")] = None,
    peers: Annotated[list[str] | None, typer.Option("--peer", metavar="AET=HOST:PORT", help="May send series, and gets the results of what it sent; may be repeated.")] = None,
    state: Annotated[str, typer.Option(metavar="FOLDER", help="Queue and received objects.")] = "seg-serve",
    aet: Annotated[str, typer.Option(help="AE title of this node.")] = "SEG",
    port: Annotated[int, typer.Option(min=0, max=65535, help="DICOM, on 127.0.0.1.")] = 11112,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="/healthz, /metrics and /queue, on 127.0.0.1.")] = 11113,
    status: Annotated[bool, typer.Option("--status", help="Print the queue's jobs, newest first, and exit; works beside a running node.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: version_option = False,
) -> None:  # fmt: skip
    """Receive series by C-STORE, segment them, store the DICOM SEG back. Ends with SIGTERM; loses nothing when killed."""
    ways = (config is not None) + (model is not None)
    if ways > 1 or (ways == 0 and not status):
        raise typer.BadParameter("give --config FILE.toml, or --model and --peer")
    if config is not None:
        sources = {name: context.get_parameter_source(name) for name in FILED}
        given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
        if given:
            raise typer.BadParameter(f"with --config the file says it all: leave {FILED[given[0]]} out")
    with guarded("seg-serve", debug):
        if status:
            from .status import print_status

            print_status(_settings(config, "", [], state, aet, port, http_port).state if config else Path(state))
            return
        from .run import run

        run(_settings(config, model or "", peers or [], state, aet, port, http_port))


def _settings(
    path: str | None, model: str, peers: list[str], state: str, aet: str, port: int, http_port: int
) -> "Config":
    """From the file, or from the options."""
    from .config import parse_config, read_config

    if path is not None:
        return read_config(path)
    tables = []
    for peer in peers:
        title, _, address = peer.partition("=")
        host, _, number = address.rpartition(":")
        if not title or not host or not number.isdigit():
            raise typer.BadParameter(f"--peer {peer!r} is not like PACS=192.0.2.7:104")
        tables.append({"aet": title, "host": host.strip("[]"), "port": int(number)})
    content = {"state": state, "aet": aet, "port": port, "http_port": http_port}
    try:
        return parse_config({**content, "peer": tables, "rule": [{"model": model}]})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def main() -> NoReturn:
    """Entry point."""
    launch(app)
