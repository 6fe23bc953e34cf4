"""Tables for people, JSON for machines, logs on stderr."""

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from broker.machine.cluster_report import ClusterRow, OrderRow
from broker.machine.device_report import DeviceRow
from broker.machine.report import ClaimRow, PoolRow

_STATE_STYLE = {"Allocated": "green", "Pending": "yellow", "Invalid": "red"}


def set_up_logging(verbosity: int, log_format: str) -> None:
    """Logs go to stderr: warnings, with -v what happens, with -vv everything."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else logging.Formatter("%(levelname).1s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("nats").setLevel(logging.ERROR)  # our adapters say it in our words
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every TLS connection that ends
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def open_missing_streams() -> None:
    """Whoever started us may have closed stdin, stdout or stderr: they are /dev/null then.

    Python has None for them, and would give their file descriptors to what is opened next: a file, a connection.
    """
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  # for as long as we run
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def drop_unwritable() -> None:
    """What stdout and stderr still hold and cannot write is dropped, so that the interpreter's last flush is silent."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    sys.stdout.flush()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich itself would end the process here, with 1; what becomes of it is for `main` to say, as with `print`."""
        raise  # the BrokenPipeError for which rich calls this


def console() -> Console:
    """Where tables go; as wide as the terminal, and wide enough for a table where there is none."""
    width = None if sys.stdout.isatty() else 160
    return _Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)


def claim_table(rows: Sequence[ClaimRow]) -> Group:
    """Who got what and who waits; below it why, a sentence for each that has no devices."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("CLUSTER", "CLAIM", "STATE", "DEVICES", "REASON"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        devices = "\n".join(f"{each.request}: {each.pool}/{each.device}" for each in row.results)
        state = Text(row.state, _STATE_STYLE[row.state])
        table.add_row(row.cluster, f"{row.namespace}/{row.name}", state, devices or "-", row.reason)
    why = [
        Text.assemble((f"{row.cluster}/{row.namespace}/{row.name}: ", "bold"), row.message.replace("\n", "\n    "))
        for row in rows
        if row.message
    ]
    return Group(table, *([Text(), *why] if why else []))


def pool_table(rows: Sequence[PoolRow]) -> Table:
    """The pools and how much of them is free."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("POOL", "DRIVER", "WHERE", "DEVICES", "FREE", "TAINTED", "PROBLEM"):
        right = name in ("DEVICES", "FREE", "TAINTED")
        table.add_column(name, no_wrap=name != "PROBLEM", justify="right" if right else "left")
    for row in rows:
        numbers = (str(row.devices), str(row.free), str(row.tainted) if row.tainted else "-")
        table.add_row(row.pool, row.driver, row.scope, *numbers, Text(row.problem))
    return table


def cluster_table(rows: Sequence[ClusterRow], now_ms: int) -> Group:
    """How each cluster stands; below it what operators ordered, a sentence for each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("CLUSTER", "STATE", "CORDON", "HEARD", "SYNCED", "EPOCH", "CLAIMS", "GRANTS", "DEVICES"):
        right = name in ("HEARD", "EPOCH", "CLAIMS", "GRANTS", "DEVICES")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    for row in rows:
        heard = f"{max(0, now_ms - row.heard_ms) // 1000} s ago" if row.heard_ms else "-"
        table.add_row(
            row.cluster,
            Text(row.state, "green" if row.state == "Ready" else "yellow" if row.state in _PASSING else "red"),
            "yes" if row.cordon else "-",
            heard,
            "yes" if row.synced else "no",
            str(row.epoch),
            str(row.claims),
            str(row.grants),
            str(row.devices),
        )
    orders = [
        Text.assemble((f"{row.cluster}: ", "bold"), f"{what} {_by(order)}")
        for row in rows
        for what, order in (("cordoned", row.cordon), ("excluded", row.exclusion), ("evicted", row.eviction))
        if order is not None
    ]
    return Group(table, *([Text(), *orders] if orders else []))


def device_table(rows: Sequence[DeviceRow]) -> Table:
    """Devices that the broker has tainted: a line for each taint."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("DEVICE", "WHERE", "TAINT", "SINCE", "BY", "HELD BY", "REASON"):
        table.add_column(name, no_wrap=name != "REASON")
    for row in rows:
        name = f"{row.driver}/{row.pool}/{row.device}"
        holders = "\n".join(row.holders) or ("-" if row.is_published else "(not published)")
        for taint in row.taints:
            since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(taint.since_ms // 1000))
            key = f"{taint.key}:{taint.effect}"
            table.add_row(*map(Text, (name, row.scope, key, since, taint.by, holders, taint.reason)))
    return table


_PASSING = ("Waiting", "Stale", "Returning", "Readmitting")


def _by(order: OrderRow) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(order.at_ms // 1000))
    return f"by {order.operator} on {at}: {order.reason}"
