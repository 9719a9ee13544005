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

from recipes.lib.annotation.access import Access, names_of
from recipes.lib.annotation.server import make_app, serve
from recipes.lib.errors import UserError
from recipes.lib.feedback.arguments import ServeArguments
from recipes.lib.feedback.project import Project

LOOPBACK = "127.0.0.1"


def host(project: Project, script: ServeArguments) -> None:
    """Open the page, and serve it until everything is answered or Ctrl-C.

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
    annotator = (script.annotator or _user()) if is_alone else None
    if annotator:
        store.add_annotator(annotator)
    hosts = names_of(address)

    def tell(port: int) -> None:
        for name in script.share:
            print(f"{name}: http://{hosts[-1]}:{port}/a/{store.give_secret(name)}", flush=True)
        if is_alone:
            page = f"http://127.0.0.1:{port}/"
            print(f"Answer on {page} (Ctrl-C ends)", flush=True)
            if script.open_browser and _has_screen():
                # In a thread: some browsers come back when they are closed.
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

    with _sampling(project, script.chat) as sampler:

        def is_done() -> bool:
            wanted = script.num_answers
            is_enough = wanted is not None and store.counts()["answers"] >= wanted
            return is_enough or bool(sampler and sampler.poll())

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
def _sampling(project: Project, is_chat: bool) -> Iterator[subprocess.Popen[bytes] | None]:
    """The process that samples, while it is needed; it ends with this one, however that ends."""
    if not is_chat and not project.store.counts()["waiting"]:
        yield None
        return
    command = [sys.executable, "-m", "recipes.feedback", "sample"]
    command += ["--output_dir", str(project.path)]
    quiet = os.environ | {"TQDM_DISABLE": "1"}  # bars would run over what this process says
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=quiet) as process:
        try:
            yield process
        finally:
            process.terminate()
