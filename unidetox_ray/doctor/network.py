"""What listens beyond loopback on this machine and belongs to Ray or MLflow."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from unidetox_ray.doctor.checking import Line, check, ok, skipped, warn
from unidetox_ray.doctor.subject import Subject

#: Ports whose owner cannot be seen (another user's process), but whose number says what they are.
_KNOWN = {6379: "Ray's GCS", 8265: "Ray's dashboard", 10001: "Ray's client server", 5000: "an MLflow server"}
_NAMED = 4


def owner(words: list[str], name: str) -> str:
    """ "Ray" or "MLflow" for a process that is theirs, by its command line or name; "" for any other."""
    title, program = " ".join(words), (words[0].rpartition("/")[2] if words else name)
    if program in ("gcs_server", "raylet") or name in ("gcs_server", "raylet") or title.startswith("ray::"):
        return "Ray"
    if (
        "/ray/dashboard/" in title
        or "/ray/_private/" in title
        or "/ray/autoscaler/" in title
        or "/ray/util/client/" in title
    ):
        return "Ray"
    if "mlflow" in title and ("server" in title or " ui" in title or "mlflow.server" in title):
        return "MLflow"
    return ""


def beyond_loopback(address: str) -> bool:
    """Whether a socket bound to this address can be reached from another machine."""
    try:
        bound = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    mapped = getattr(bound, "ipv4_mapped", None)
    return not (mapped or bound).is_loopback


@check("open ports")
def open_ports(subject: Subject) -> Iterator[Line]:
    import psutil

    try:
        sockets = [each for each in psutil.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        yield skipped(
            "this system shows sockets to administrators only", "look with `lsof -iTCP -sTCP:LISTEN`"
        )
        return
    found: dict[str, set[tuple[int, str]]] = {"Ray": set(), "MLflow": set()}
    hidden = []
    for each in sockets:
        if not beyond_loopback(each.laddr.ip):
            continue
        if each.pid is None:
            if each.laddr.port in _KNOWN:
                hidden.append(each.laddr.port)
            continue
        try:
            process = psutil.Process(each.pid)
            name = process.name()
            whose = owner(process.cmdline(), name)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if whose:
            found[whose].add((each.laddr.port, name))
    if found["MLflow"]:
        yield warn(
            f"MLflow can be reached from other machines: {_listed(found['MLflow'])}; it knows no login and shows what runs generated",
            "start it on 127.0.0.1 (`unidetox ui` does) and forward the port with ssh",
        )
    if found["Ray"]:
        yield warn(
            f"Ray can be reached from other machines: {_listed(found['Ray'])}",
            "on one machine start no cluster of your own (a run starts a private one on loopback); on several set RAY_AUTH_MODE=token "
            "and keep these ports inside a private network",
        )
    for port in sorted(set(hidden)):
        yield warn(
            f"port {port} ({_KNOWN[port]}, by its number) can be reached from other machines; another user's process",
            "ask its owner, or look as administrator",
        )
    if not found["MLflow"] and not found["Ray"] and not hidden:
        yield ok("nothing of Ray or MLflow listens beyond loopback")


def _listed(sockets: set[tuple[int, str]]) -> str:
    shown = [f"{port} ({name})" for port, name in sorted(sockets)]
    return ", ".join(shown[:_NAMED]) + (f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else "")
