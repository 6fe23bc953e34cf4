"""`dragoman tracer`: what was done for claims, as spans for an OpenTelemetry collector."""

import argparse
import os
from pathlib import Path

import anyio
import shtab

from broker.adapters.errors import ListenError
from broker.app.tracer import ProgressFile, Tracer, TracerSettings
from broker.cli.build import build
from broker.cli.bus import add_nats_arguments, bus_options
from broker.cli.errors import CommandError
from broker.cli.ledger_bus import SHARD
from broker.cli.monitoring import add_http_argument, monitoring
from broker.cli.signals import until_told_to_stop
from broker.errors import flat
from schemas.client.connection import connect
from schemas.client.errors import BusError

SLOW_S_MOST = 365 * 86_400

EPILOG = """\
Where the collector is, is said by OpenTelemetry's environment variables: OTEL_EXPORTER_OTLP_ENDPOINT (default:
http://localhost:4318), OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES ...; it is spoken to by OTLP over HTTP. Needs the extra `tracing` (pip install
'dragoman[tracing]'), and at NATS the role `tracer`, which may read and nothing else. Run one: two send everything
twice, with the same ids. docs/tracing.md says what the spans are; `dragoman trace` prints them without a collector.

examples:
  dragoman tracer --nats nats://nats:4222 --data /var/lib/tracer
  dragoman tracer --data ./tracer --ratio 0.05 --slow 2        # one trace in twenty, and all that took two seconds
  dragoman -v tracer --data ./tracer --from-start --http :8081

exit code: 0 when told to stop; 1 if NATS does not let us in or the progress cannot be kept; 2 for wrong arguments.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `tracer`."""
    parser = commands.add_parser(
        "tracer",
        help="send what was done for claims to an OpenTelemetry collector",
        description="Follow the logs and send one trace for each claim's life to an OpenTelemetry collector.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    data = parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep here how far it has come; else a restart begins with what comes"
    )
    data.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # how shtab is told
    parser.add_argument("--from-start", action="store_true", help="the first time, begin with all that is kept")
    parser.add_argument(
        "--ratio",
        type=float,
        metavar="0..1",
        help="keep so many of all traces; what was refused, evicted, failed or slow is kept in any case (default: "
        "$OTEL_TRACES_SAMPLER_ARG where $OTEL_TRACES_SAMPLER is a traceidratio, else 1)",
    )
    parser.add_argument(
        "--slow",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="what took so long, waiting for devices apart, is slow (default: %(default)g)",
    )
    add_nats_arguments(parser)
    add_http_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    ratio = _ratio(options.ratio)
    if not 0 < options.slow <= SLOW_S_MOST:
        raise CommandError(f"--slow: {options.slow:g} is not above 0 and at most {SLOW_S_MOST} s")
    try:
        from broker.adapters.otlp import OtlpExporter
    except ImportError as error:
        raise CommandError(f"spans need the extra `tracing`: pip install 'dragoman[tracing]' ({error})") from error
    progress = ProgressFile(options.data)
    try:
        progress.prepare()
    except OSError as error:
        raise CommandError(f"--data {options.data} cannot be used: {error.strerror}", exit_code=1) from error
    settings = TracerSettings(SHARD, ratio, int(options.slow * 1_000_000), options.from_start)
    nats = bus_options(options, "dragoman tracer", "tracer")

    async def serve() -> None:
        exporter = OtlpExporter(build())
        try:
            async with until_told_to_stop(), connect(nats) as connection:
                tracer = Tracer(connection, exporter.export, progress, settings)

                def why_not_ready() -> str:
                    if not connection.is_up:
                        return f"not connected to NATS ({connection.places})"
                    return "" if tracer.is_exporting else "the collector does not take spans"

                async with monitoring(options.http, tracer.metrics.registry, anyio.lowlevel.checkpoint, why_not_ready):
                    await tracer.run()
        finally:
            exporter.close()

    try:
        anyio.run(serve)
    except* (BusError, ListenError, OSError, ValueError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0


def _ratio(given: float | None) -> float:
    place, text = "--ratio", str(given)
    if given is None:
        if not os.environ.get("OTEL_TRACES_SAMPLER", "").endswith("traceidratio"):
            return 1.0
        place, text = "OTEL_TRACES_SAMPLER_ARG", os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise CommandError(f"{place}: {text!r} is not a number from 0 to 1")
    return ratio
