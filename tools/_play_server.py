"""The server of ``edm2lite play``: on the loopback interface alone, connected to nothing else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"


def listen(port: int) -> socket.socket:
    """A socket that listens on the loopback interface.

    Args:
        port: Port, 0 for any that is free.

    Raises:
        ValueError: If the port is taken.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        raise ValueError(
            f"port {port} of {HOST} must be free, it is not ({error.strerror}); give another one by"
            " --port, or 0 for any"
        ) from error
    found.listen()
    return found


def serve(page: Any, listening: socket.socket, say: Callable[[str], object]) -> None:
    """Serve a page until Ctrl-C.

    Args:
        page: The ``gradio.Blocks``.
        listening: Result of :func:`listen`.
        say: Function that prints the address.
    """
    import fastapi
    import gradio
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from ._play_page import CSS

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    # a page of another site must not reach this one under a name that it has made point here
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    port = listening.getsockname()[1]
    theme = gradio.themes.Default(  # fonts of the system: none is fetched
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    app = gradio.mount_gradio_app(
        app, page, path="/", server_name=HOST, server_port=port, theme=theme, css=CSS,
        ssr_mode=False, footer_links=[], run_history=False, enable_monitoring=False,
        show_error=True, pwa=False, mcp_server=False,
    )  # fmt: skip
    say(f"http://{HOST}:{port} (Ctrl-C ends it)")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # the way in which this ends
        return
