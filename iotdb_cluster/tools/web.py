"""The web port of a node's process: `/metrics` for Prometheus, `/health`; on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

__all__ = ["start_web"]


class _Figures:
    """The node's own figures, as it tells them at the moment."""

    def __init__(self, figures: Callable[[], dict[str, float]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self._figures().items()):
            family = GaugeMetricFamily(f"iotdb_{name}", name.replace("_", " "))
            family.add_metric([], value)
            yield family


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Scrapes are not worth a line each."""


def start_web(port: int, figures: Callable[[], dict[str, float]], serving: Callable[[], bool]) -> WSGIServer:
    """Serve on a thread until `shutdown`; OSError where the port is taken."""
    registry = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    registry.register(_Figures(figures))
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        if path == "/health":
            up = serving()
            start_response("200 OK" if up else "503 Service Unavailable", [("Content-Type", "application/json")])
            return [json.dumps({"serving": up}).encode()]
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics and /health are here\n"]

    server = make_server("127.0.0.1", port, application, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, name="web", daemon=True).start()
    return server
