"""A page that is open: its address and links, the process that samples, and its end."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recipes.lib.annotation.access import Access, names_of
from recipes.lib.annotation.server import make_app, serve
from recipes.lib.errors import UserError
from recipes.lib.feedback.arguments import AskArguments
from recipes.lib.feedback.project import Project

LOOPBACK = "127.0.0.1"


def host(project: Project, script: AskArguments) -> None:
    """Open the page, and serve it until Ctrl-C, or until num_answers are there.

    Args:
        project: What is asked.
        script: Keys of the recipe.

    Raises:
        UserError: The address cannot be had, or sampling failed.
    """
    store = project.store
    for name in script.revoke:
        store.revoke(name)
    address = script.host or ("0.0.0.0" if script.share else LOOPBACK)
    is_alone = address in (LOOPBACK, "::1", "localhost") and not script.share
    if not is_alone and not script.share:
        raise UserError(f"host={address}: others come by links; name them with --share.")
    annotator = (script.annotator or _user()) if is_alone else None
    if annotator:
        store.add_annotator(annotator)
    hosts = names_of(address)

    def tell(port: int) -> None:
        place = f"http://{hosts[-1]}:{port}"
        for name in script.share:
            secret = store.give_secret(name)
            told = f"{place}/a/{secret}" if secret else "has a link already (--revoke ends it)"
            print(f"{name}: {told}", flush=True)
        if is_alone:
            page = f"{place}/"
            print(f"Answer on {page} (Ctrl-C ends)", flush=True)
            if script.open_browser and _has_screen():
                # In a thread: some browsers come back when they are closed.
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

    with _sampling(project, script) as sampler:

        def is_done() -> bool:
            is_over = script.num_answers is not None and store.is_over(script.num_answers)
            return is_over or bool(sampler and sampler.poll())

        access = Access(store, annotator, hosts)
        app = make_app(store, access, str(project.path.resolve()), is_chat=script.chat)
        serve(app, address, script.port, tell, is_done)
        if sampler and sampler.poll():
            raise UserError("sampling ended with the error above; what was answered is kept.")


def _has_screen() -> bool:
    # Without one, a browser of the terminal would take it over.
    named = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(os.environ.get(name) for name in named)


def _user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a user without a name
        return "me"


@contextmanager
def _sampling(project: Project, script: AskArguments) -> Iterator[subprocess.Popen[bytes] | None]:
    """The process that samples, while it is needed; it ends with this one, however that ends."""
    if not script.chat and not project.store.counts()["waiting"]:
        yield None
        return
    command = [sys.executable, "-m", "recipes.feedback", "sample"]
    command += ["--output_dir", str(project.path)]
    command += ["--database", project.database] if project.database else []
    command += ["--trust_remote_code"] if script.trust_remote_code else []
    quiet = os.environ | {"TQDM_DISABLE": "1"}  # bars would run over what this process says
    # In a session of its own: a Ctrl-C of the terminal is for the page.
    kept: dict[str, Any] = {"env": quiet, "start_new_session": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **kept) as process:
        try:
            yield process
        finally:
            process.terminate()
