"""What `recollect doctor --store URI` looks at: account, reachability, rights, conditional puts."""

from __future__ import annotations

from collections.abc import Mapping

from recollect.cli.checks import Check
from recollect.errors import NotFound, RecollectError


def check_store(uri: str, options: Mapping[str, str] | None) -> list[Check]:
    """The findings, up to the first that makes the next ones pointless. Writes a few bytes beside the buffer."""
    from recollect.cold.dataset import Datasets
    from recollect.cold.location import Location
    from recollect.cold.probe import probe, writable

    done: list[Check] = []
    name = "store account"
    try:
        location = Location(uri, options)
        account = location.account
        source = "no account needed" if account is None else f"credentials: {account.source}"
        at = f", endpoint: {account.endpoint}" if account is not None and account.endpoint else ""
        region = "" if account is None else account.options.get("aws_region", "")
        done.append(Check(name, "ok", source + at + (f", region: {region}" if region else "")))
        name = "store is reachable"
        try:
            data = Datasets.open_(location)
            found = f"buffer at version {data.steps.version} with {data.steps.count_rows():,} rows"
        except NotFound:
            found = "no buffer there yet"
        done.append(Check(name, "ok", f"{location.uri}: {found}"))
        name = "store is writable"
        if location.is_local:
            writable(location)
            return [*done, Check(name, "ok", location.uri)]
        left = probe(location).leftover
    except RecollectError as e:
        return [*done, Check(name, "failed", e.message, e.remedy)]
    remedy = f"Allow deletion, or remove {left} by hand" if left else None
    done.append(Check(name, "warning" if left else "ok", "objects cannot be deleted" if left else location.uri, remedy))
    done.append(Check("store refuses a second creation of a key", "ok", "conditional put works"))
    return done
